"""The load generator: closed and open loop, in as many client processes as are needed."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from enginegate.config import Arrivals
from enginegate.errors import ServingError
from enginegate.machine import Child
from enginegate.serving.load.exchange import Exchange, save_exchange
from enginegate.serving.load.windows import (
    Fault,
    OpenWindow,
    Seconds,
    Window,
    add_faults,
    as_text,
    cut,
    from_text,
    merge,
)

MOST_CONNECTIONS = 256  # of an open loop
_READY_CONNECTIONS = 16
_PROBE_S = 0.25
_ENOUGH_SHARE = 0.8  # of a processor; above it, one more client process is started
_LEAD_S = 0.05  # between the order for an open loop and its first request
_GRACE_S = 10.0  # beyond what a client process may take


def _client(exchange: int) -> Child:
    """One client process."""
    command = [sys.executable, "-m", "enginegate.serving.load.loader", str(exchange)]
    paths = os.pathsep.join(path for path in sys.path if path)
    return Child(command, env={**os.environ, "PYTHONPATH": paths}, pass_fds=[exchange])


def _answer(client: Child, timeout_s: float) -> dict[str, Any]:
    """Its next answer. Raises ServingError if it fails, ends or keeps silent."""
    try:
        answer: dict[str, Any] = client.answer(timeout_s)
    except TimeoutError as error:
        raise ServingError(f"a load client {error}; the machine may be overloaded") from error
    except EOFError as error:
        raise ServingError(f"a load client {error}; see its output above") from error
    if "cannot" in answer:
        raise ServingError(answer["cannot"])
    return answer


@dataclass
class ClosedLevel:
    """Closed-loop load that is running."""

    generator: "Generator"
    clients: Sequence[Child]
    edge_s: float

    def window(self, time_s: float) -> Window:
        """The next `time_s` seconds, which begin where the last window ended.

        Returns when all that was outstanding at its end has been answered too. Raises ServingError
        if a client process fails; errors of requests are counted.
        """
        start_s, self.edge_s = self.edge_s, self.edge_s + time_s
        for client in self.clients:
            client.order(do="window", end=self.edge_s)
        found = self.generator.answers(self.clients, time_s + self.generator.timeout_s)
        return merge([_window(answer, start_s, self.edge_s) for answer in found])


class Generator:
    """Owns the client processes."""

    def __init__(self, exchange: int, texts: int, timeout_s: float, most_processes: int) -> None:
        self.timeout_s = timeout_s
        self._exchange, self._texts, self._most = exchange, texts, most_processes
        self._clients: list[Child] = []
        self._needed = 1
        self._probed: set[int] = set()  # concurrencies that the processes are enough for

    def start(self) -> None:
        """Start a client process now, so that the first load does not wait until it is loaded."""
        self._ready(1)

    @contextlib.contextmanager
    def closed(self, concurrency: int) -> Iterator[ClosedLevel]:
        """Keep so many requests outstanding, one a connection, in as few processes as can do it.

        Raises ServingError if the server cannot be reached.
        """
        level = self._enough(concurrency)
        try:
            yield level
        except BaseException:
            self.close()  # whatever they wait for is given up
            raise
        self._stop(level)

    def _enough(self, concurrency: int) -> ClosedLevel:
        """A level in one more process as long as they are busy; each concurrency is probed once."""
        level = self._start(concurrency)
        while concurrency not in self._probed and self._needed < min(concurrency, self._most):
            if level.window(_PROBE_S).client_share <= _ENOUGH_SHARE:
                self._probed.add(concurrency)
            else:
                self._stop(level)
                self._needed += 1
                level = self._start(concurrency)
        return level

    def _start(self, concurrency: int) -> ClosedLevel:
        clients = self._ready(min(self._needed, concurrency))
        counts = [len(range(i, concurrency, len(clients))) for i in range(len(clients))]
        for i, client in enumerate(clients):
            first = i * self._texts // len(clients)
            order = {"connections": counts[i], "first": first, "limit_s": self.timeout_s}
            client.order(do="closed", **order)
        self.answers(clients, self.timeout_s)
        return ClosedLevel(self, clients, time.monotonic())

    def _stop(self, level: ClosedLevel) -> None:
        running = [client for client in level.clients if client in self._clients]  # not failed
        for client in running:
            client.order(do="stop")
        self.answers(running, self.timeout_s)

    def _ready(self, count: int) -> list[Child]:
        while len(self._clients) < count:
            self._clients.append(_client(self._exchange))
        return self._clients[:count]

    def answers(self, clients: Sequence[Child], timeout_s: float) -> list[dict[str, Any]]:
        """One answer of each. If one fails, all are closed, and started anew when needed."""
        end_s = time.monotonic() + timeout_s + _GRACE_S
        try:
            return [_answer(client, end_s - time.monotonic()) for client in clients]
        except ServingError:
            self.close()
            raise

    def open(
        self,
        rate_per_s: float,
        arrivals: Arrivals,
        time_s: float,
        seed: int,
        most_connections: int = MOST_CONNECTIONS,
    ) -> OpenWindow:
        """Send requests at times fixed beforehand; at least one.

        Raises ServingError if the server cannot be reached; errors of requests are counted.
        """
        due_s = schedule(rate_per_s, arrivals, time_s, seed)
        clients = self._ready(min(self._needed, len(due_s)))
        shares = [due_s[i :: len(clients)] for i in range(len(clients))]
        self._prepare_open(clients, shares, most_connections // len(clients))
        start_s = time.monotonic() + _LEAD_S
        for client in clients:
            client.order(do="start", start=start_s)
        found = self.answers(clients, float(due_s[-1]) + self.timeout_s)
        return _open_window(found, [start_s + share for share in shares])

    def _prepare_open(self, clients: Sequence[Child], shares: Sequence[Seconds], most: int) -> None:
        limits = {"limit_s": self.timeout_s, "most_connections": most}
        for i, client in enumerate(clients):
            first = i * self._texts // len(clients)
            due = as_text(shares[i])
            ready = _READY_CONNECTIONS
            client.order(do="open", first=first, due=due, ready_connections=ready, **limits)
        self.answers(clients, self.timeout_s)

    def close(self) -> None:
        """End the client processes."""
        while self._clients:
            self._clients.pop().close()


@contextlib.contextmanager
def open_generator(
    exchange: Exchange, *, timeout_s: float = 30.0, most_processes: int | None = None
) -> Iterator[Generator]:
    """A generator for one endpoint, with as many client processes as processors at most.

    `timeout_s` is the longest that anything waits for an answer. The processes end with this one,
    even if it is killed.
    """
    with tempfile.TemporaryFile() as file:  # without a name, so that nothing is ever left of it
        save_exchange(exchange, file)
        file.flush()
        most, texts = most_processes or os.cpu_count() or 1, len(exchange.requests)
        generator = Generator(file.fileno(), texts, timeout_s, most)
        with contextlib.closing(generator):
            yield generator


def schedule(rate_per_s: float, arrivals: Arrivals, time_s: float, seed: int) -> Seconds:
    """Seconds after the start at which requests are due, ascending."""
    count = max(round(rate_per_s * time_s), 1)
    if arrivals is Arrivals.CONSTANT:
        return np.arange(count) / rate_per_s
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    return np.cumsum(gaps_s)


def _window(answer: Mapping[str, Any], start_s: float, end_s: float) -> Window:
    window = cut(from_text(answer["sent"]), from_text(answer["received"]), start_s, end_s)
    wrong, errors = Fault(*answer["wrong"]), Fault(*answer["errors"])
    share, client_s = answer["client_share"], answer["mean_client_s"] * window.answered
    return replace(window, client_share=share, client_s=client_s, wrong=wrong, errors=errors)


def _open_window(answers: Sequence[Mapping[str, Any]], shares: Sequence[Seconds]) -> OpenWindow:
    ended_s = max(answer["ended"] for answer in answers)
    due_s = np.concatenate(shares)
    sent_s = np.concatenate([from_text(answer["sent"]) for answer in answers])
    received_s = np.concatenate([from_text(answer["received"]) for answer in answers])
    places = zip(answers, shares, strict=True)
    failed = np.concatenate([np.isin(np.arange(len(s)), a["failed"]) for a, s in places])
    answered = ~np.isnan(received_s)
    if answered.all():
        ended_s = float(received_s.max())
    return OpenWindow(
        latencies_s=(np.where(answered, received_s, ended_s) - due_s)[~failed],
        latencies_from_send_s=(received_s - sent_s)[answered],
        duration_s=ended_s - float(due_s.min()),
        requests=len(due_s),
        unanswered=int((~answered & ~failed).sum()),
        held=any(answer["held"] for answer in answers),
        client_share=max(answer["client_share"] for answer in answers),
        wrong=add_faults([Fault(*answer["wrong"]) for answer in answers]),
        errors=add_faults([Fault(*answer["errors"]) for answer in answers]),
    )
