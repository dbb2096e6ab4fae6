"""What a served engine carries: sweep, open loop, capacity; and its speed beside its yardstick."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from enginegate.baselines import Baseline
from enginegate.cliffs import Analysis, analyse, new_cliffs
from enginegate.errors import ServingError
from enginegate.levels import Capacity, Driver, Endpoint, Level, OpenLevel, Protocol
from enginegate.results import Load
from enginegate.serve_options import ServeOptions
from enginegate.served import ServedEngine
from enginegate.serving.capacity import find_capacity
from enginegate.serving.client import statistics
from enginegate.serving.environment import Progress
from enginegate.serving.exchange import Exchange, make_exchange
from enginegate.serving.load import Generator, open_generator
from enginegate.serving.perf_analyzer import find_perf_analyzer, run_perf_analyzer
from enginegate.serving.sweep import closed_window, run_level, run_open
from enginegate.serving.usage import processor_s
from enginegate.timing import CANDIDATE, SENTINEL, YARDSTICK, Arm, Rig, Turn
from enginegate.verdict import Judgement, judge_load

_OPEN_S = 5.0  # of one open-loop level
_REPLICATE_S = 2.0  # of each level in a replicate; one block at least
_WARM_UP_S = 0.1
_ROUNDS = 3  # answers of every connection that a turn waits for
_FEWEST_ANSWERS = 20

RunLevel = Callable[[int], Level]


@dataclass(frozen=True)
class LoadRun:
    """Loads one served engine.

    Attributes:
        options: with what.
        progress: tells of every level.
        seed: of the open-loop arrivals.
    """

    options: ServeOptions
    progress: Progress
    seed: int

    def measure(
        self, served: ServedEngine, known: Baseline | None, missing: Judgement, limit: float
    ) -> Load:
        """All levels, closed and open, and the capacity if one is sought, judged by `known`.

        Without a stored load, `missing` is what is said of it. Levels of a cliff that the baseline
        lacks are measured a second time before it is believed.
        Raises ServingError for answers that are wrong or missing.
        """
        with open_generator(served.exchange) as generator:
            run = self._closed(served, generator)
            levels = {n: run(n) for n in self.options.concurrencies}
            for concurrency in _suspects(self._analysed(levels, served), known):
                levels[concurrency] = run(concurrency)
            analysis = self._analysed(levels, served)
            opened = tuple(self._open(generator, rate) for rate in self.options.rates_per_s)
            capacity = self._capacity(generator, levels)
        stored = known.load if known else None
        judgement = judge_load(analysis.cliffs, capacity, stored, limit) if stored else missing
        return Load(
            server=served.server_name,
            deployment=served.deployment,
            driver=self.options.driver,
            difference=served.difference or 0.0,
            levels=tuple(levels.values()),
            analysis=analysis,
            open_levels=opened,
            capacity=capacity,
            judgement=judgement,
        )

    def _analysed(self, levels: Mapping[int, Level], served: ServedEngine) -> Analysis:
        return analyse(tuple(levels.values()), served.deployment)

    def _closed(self, served: ServedEngine, generator: Generator) -> RunLevel:
        if self.options.driver is Driver.PERF_ANALYZER:
            tokens = served.source.texts.evaluation
            run = partial(run_perf_analyzer, find_perf_analyzer(), served.endpoint, tokens)
        else:
            run = partial(_own_level, generator, served.endpoint)

        def watched(concurrency: int) -> Level:
            with self.progress(f"concurrency {concurrency}"):
                return _with_usage(run, concurrency, served)

        return watched

    def _open(self, generator: Generator, rate_per_s: float) -> OpenLevel:
        with self.progress(f"{rate_per_s:.0f} requests a second"):
            return run_open(generator, rate_per_s, self.options.arrivals, _OPEN_S, self.seed)

    def _capacity(self, generator: Generator, levels: Mapping[int, Level]) -> Capacity | None:
        """Sought from half of the largest closed-loop throughput on."""
        if self.options.slo is None:
            return None
        start_per_s = max(level.throughput_per_s for level in levels.values()) / 2
        return find_capacity(
            lambda rate: self._open(generator, rate), self.options.slo, start_per_s
        )


def _own_level(generator: Generator, endpoint: Endpoint, concurrency: int) -> Level:
    return run_level(generator, concurrency, lambda: statistics(endpoint), Driver.OWN)


def _with_usage(run: RunLevel, concurrency: int, served: ServedEngine) -> Level:
    """The level, with the processor time of a server that this run started."""
    if served.server is None:
        return run(concurrency)
    before_s, start_s = processor_s(served.server.pid), time.monotonic()
    level = run(concurrency)
    used_s = processor_s(served.server.pid) - before_s
    return replace(level, server_share=used_s / (time.monotonic() - start_s))


def _suspects(analysis: Analysis, known: Baseline | None) -> Sequence[int]:
    if known is None or known.load is None:
        return ()
    ranges = [range(c.first, c.last + 1) for c in new_cliffs(analysis.cliffs, known.load.cliffs)]
    return [concurrency for inside in ranges for concurrency in inside]


def compared_levels(load: Load, known: Baseline | None) -> tuple[int, ...]:
    """The levels to compare: those of the baseline, or 1 and where throughput is saturated."""
    if known is not None:
        return tuple(sorted(known.cells))
    largest = max(level.concurrency for level in load.levels)
    return tuple(sorted({1, load.analysis.saturated_from or largest}))


@dataclass(frozen=True)
class ServedArm:
    """A model on a server under closed-loop load."""

    generator: Generator

    def run(self, batch: int, time_s: float) -> Turn:
        """Latency in seconds of each request with `batch` outstanding, for `time_s` and longer.

        Each connection has three answers at least, so that a turn holds whole cycles of batches.
        """
        fewest = max(_FEWEST_ANSWERS, _ROUNDS * batch)
        window = closed_window(self.generator, batch, _WARM_UP_S, time_s, fewest)
        return tuple(window.latencies_s.tolist())


def served_rig(served: ServedEngine, rng: random.Random) -> Rig:
    """What times a served engine beside its yardstick on the same server.

    For every replicate all models are loaded anew, in random order. Raises ServingError for a
    server that this run did not start: there is no yardstick on it.
    """
    server = served.server
    if server is None:
        raise ServingError("a server that ran already has no yardstick to compare with")

    @contextlib.contextmanager
    def open_arms(_levels: Sequence[int], order: random.Random) -> Iterator[Mapping[str, Arm]]:
        names = [CANDIDATE, YARDSTICK, SENTINEL]
        order.shuffle(names)
        arms: dict[str, Arm] = {}
        with contextlib.ExitStack() as stack:
            for name in names:
                server.load(name)
                exchange = _exchange(served, server.endpoint(name, Protocol.HTTP))
                arms[name] = ServedArm(stack.enter_context(open_generator(exchange)))
            yield arms

    return Rig(open_arms, _REPLICATE_S, rng, watch_self=False)


def _exchange(served: ServedEngine, endpoint: Endpoint) -> Exchange:
    """Requests for a model of the same server; what the yardstick answers is not checked."""
    source, known = served.source, served.exchange
    tolerance = known.tolerance if endpoint.model == CANDIDATE else float("inf")
    tokens, output = source.texts.evaluation, source.model.output
    return make_exchange(endpoint, tokens, output, known.expected, tolerance)
