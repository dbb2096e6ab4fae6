"""A dynamic batcher under closed-loop load, simulated event by event: sweeps with known causes."""

import heapq
import math
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from enginegate.config.serving import Deployment
from enginegate.serving.records import Breakdown, Latency, Level

ARRIVAL, FREE, TIMER = "arrival", "free", "timer"
_WARM_UP = 8  # requests of each client that are not counted


@dataclass(frozen=True)
class Server:
    """A deployment with t(b) = fixed_s + b * each_s, and a turnaround outside the server.

    `spread` is the part of the turnaround that is exponential; 0 makes all of it constant.
    """

    deployment: Deployment
    fixed_s: float
    each_s: float
    turnaround_s: float = 0.0
    spread: float = 0.0

    def execution_s(self, batch: int) -> float:
        return self.fixed_s + batch * self.each_s

    def preferred(self) -> tuple[int, ...]:
        return self.deployment.preferred_batch_sizes or (self.deployment.max_batch_size,)


def batch_to_send(server: Server, waiting: int, oldest_s: float) -> int:
    """Texts that a free instance is given; 0 to wait. `oldest_s` is the age of the oldest."""
    delay_s = server.deployment.max_queue_delay_us * 1e-6
    all_of_them = min(waiting, server.deployment.max_batch_size)
    if delay_s and oldest_s >= delay_s - 1e-12:
        return all_of_them
    fitting = [size for size in server.preferred() if size <= waiting]
    return max(fitting) if fitting else (0 if delay_s else all_of_them)


class Simulation:
    """One level. Requests are numbers; `now` is in seconds."""

    def __init__(self, server: Server, clients: int, rng: np.random.Generator):
        self.server, self.clients, self.rng = server, clients, rng
        self.now, self.free, self.order = 0.0, server.deployment.instances, count()
        self.queue: list[float] = []  # when each arrived
        self.events: list[tuple[float, int, str, int]] = []
        self.log: list[tuple[float, float, int, float]] = []  # waited, taken, batch, end
        self.network_s: list[float] = []

    def run(self, requests: int) -> Level:
        """A level of so many counted requests."""
        for client in range(self.clients):
            self._schedule(1e-6 * client, ARRIVAL)
        skipped = self.clients * _WARM_UP
        while len(self.log) < skipped + requests:
            self.now, _, kind, returned = heapq.heappop(self.events)
            self._handle(kind, returned)
            self._dispatch()
        return self._level(self.log[skipped:])

    def _schedule(self, at_s: float, kind: str, returned: int = 0) -> None:
        heapq.heappush(self.events, (at_s, next(self.order), kind, returned))

    def _handle(self, kind: str, returned: int) -> None:
        if kind == ARRIVAL:
            self.queue.append(self.now)
            delay_s = self.server.deployment.max_queue_delay_us * 1e-6
            if delay_s:
                self._schedule(self.now + delay_s, TIMER)
        elif kind == FREE:
            self.free += 1
            for _ in range(returned):
                self._schedule(self.now + self._turnaround_s(), ARRIVAL)

    def _turnaround_s(self) -> float:
        spread, mean_s = self.server.spread, self.server.turnaround_s
        self.network_s.append(mean_s * (1 - spread + spread * float(self.rng.exponential())))
        return self.network_s[-1]

    def _dispatch(self) -> None:
        while self.free and self.queue:
            size = batch_to_send(self.server, len(self.queue), self.now - self.queue[0])
            if not size:
                return
            batch, self.queue = self.queue[:size], self.queue[size:]
            taken_s = self.server.execution_s(size)
            self.free -= 1
            self._schedule(self.now + taken_s, FREE, size)
            self.log += [(self.now - at, taken_s, size, self.now + taken_s) for at in batch]

    def _level(self, log) -> Level:
        queue_s, compute_s, sizes, ends = (np.array(column) for column in zip(*log, strict=True))
        duration_s = ends.max() - ends.min() + 1e-12
        inside = ends > ends.min()  # the first batch ends where counting starts
        throughput = inside.sum() / duration_s
        network_s = float(np.mean(self.network_s))
        means = Breakdown(network_s, queue_s.mean(), 0.0, compute_s.mean(), 0.0)
        batches = {int(b): max(1, round((sizes == b).sum() / b)) for b in set(sizes)}
        unknown = dict.fromkeys(("p50_s", "p90_s", "p95_s", "p99_s", "max_s"), math.nan)
        latency = Latency(network_s + queue_s.mean() + compute_s.mean(), **unknown)
        return Level(self.clients, float(throughput), latency, breakdown=means, batches=batches)


def level_of(server: Server, clients: int, seed: int = 0, requests: int = 600) -> Level:
    """One simulated level."""
    return Simulation(server, clients, np.random.default_rng(seed)).run(requests)


def sweep_of(server: Server, concurrency=range(1, 33), requests: int = 600) -> list[Level]:
    """A simulated sweep without noise of measurement."""
    return [level_of(server, clients, clients, requests) for clients in concurrency]


def undelayed(server: Server) -> Server:
    """The server with the advice applied."""
    changed = replace(server.deployment, max_queue_delay_us=0, preferred_batch_sizes=())
    return replace(server, deployment=changed)


def noisy(levels, sd: float, rng: np.random.Generator) -> list[Level]:
    """The levels with throughput off by a factor of that standard deviation, latency following."""
    return [_scaled(level, math.exp(sd * rng.normal())) for level in levels]


def _scaled(level: Level, factor: float) -> Level:
    latency = replace(level.latency, mean_s=level.latency.mean_s / factor)
    return replace(level, throughput_per_s=level.throughput_per_s * factor, latency=latency)


def client_figures(levels) -> list[Level]:
    """The levels as a client alone sees them."""
    return [replace(level, breakdown=None, batches={}) for level in levels]
