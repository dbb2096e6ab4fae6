"""What a served engine carries: sweep, open loop, capacity; and its speed beside its yardstick."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from enginegate.config import Driver, Endpoint, Protocol, ServeOptions
from enginegate.machine import Condition, disturbance
from enginegate.serving.analysis.advice import ADVISED, is_curable, tried, without_delay
from enginegate.serving.analysis.cliffs import analyse, new_cliffs
from enginegate.serving.load.capacity import find_capacity
from enginegate.serving.load.exchange import Exchange, make_exchange
from enginegate.serving.load.generator import Generator, open_generator
from enginegate.serving.load.perf_analyzer import find_perf_analyzer, run_perf_analyzer
from enginegate.serving.load.sweep import closed_window, run_level, run_open
from enginegate.serving.records import (
    Analysis,
    Capacity,
    Cliff,
    Level,
    Load,
    OpenLevel,
    StoredLoad,
)
from enginegate.serving.served import ServedEngine
from enginegate.serving.triton.client import statistics
from enginegate.serving.triton.environment import Progress
from enginegate.speed import CANDIDATE, CONTROL, SECOND_CONTROL, Arm, Rig, Turn
from enginegate.verdicts import Judgement, Verdict

_OPEN_S, _MOST_OPEN_S = 5.0, 20.0  # of one open-loop level
_OPEN_REQUESTS = 1000  # that it is to hold, as far as its time lets it: ten beyond the p99
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
        self, served: ServedEngine, stored: StoredLoad | None, missing: Judgement, limit: float
    ) -> Load:
        """All levels, closed and open, and the capacity if one is sought, judged by `stored`.

        Without a stored load, `missing` is the judgement. Levels of a cliff that the stored load
        lacks are measured a second time before it is believed.
        Raises ServingError for answers that are wrong or missing.
        """
        with open_generator(served.exchange) as generator:
            run = self._closed(served, generator)
            levels = {n: run(n) for n in self.options.concurrencies}
            levels |= {n: run(n) for n in _suspects(levels, self._analysed(levels, served), stored)}
            analysis = self._analysed(levels, served)
            rates_per_s = enumerate(self.options.rates_per_s)
            opened = tuple(self._open(generator, rate, index) for index, rate in rates_per_s)
            capacity = self._capacity(generator, levels)
        analysis = self._with_advice_tried(analysis, served, tuple(levels))
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

    def _with_advice_tried(
        self, analysis: Analysis, served: ServedEngine, swept: Sequence[int]
    ) -> Analysis:
        """The analysis with what its advice gives; a server that ran already is left as it is."""
        if served.server is None or not any(map(is_curable, analysis.cliffs)):
            return analysis
        deployment = without_delay(served.deployment)
        with (
            served.redeployed(ADVISED, deployment) as advised,
            open_generator(advised.exchange) as generator,
        ):
            run = self._closed(advised, generator)
            cliffs = tuple(tried(cliff, swept, run) for cliff in analysis.cliffs)
        return replace(analysis, cliffs=cliffs)

    def _closed(self, served: ServedEngine, generator: Generator) -> RunLevel:
        if self.options.driver is Driver.PERF_ANALYZER:
            tokens = served.source.texts.padded
            run = partial(run_perf_analyzer, find_perf_analyzer(), served.endpoint, tokens)
        else:
            run = partial(_own_level, generator, served.endpoint)

        def watched(concurrency: int) -> Level:
            with self.progress(f"{served.endpoint.model} at concurrency {concurrency}"):
                return _with_usage(run, concurrency, served)

        return watched

    def _open(self, generator: Generator, rate_per_s: float, index: int) -> OpenLevel:
        """One level; `index` makes the arrivals of each differ."""
        time_s = min(max(_OPEN_S, _OPEN_REQUESTS / rate_per_s), _MOST_OPEN_S)
        seed = self.seed + index
        with self.progress(f"{rate_per_s:.0f} requests a second"):
            return run_open(generator, rate_per_s, self.options.arrivals, time_s, seed)

    def _capacity(self, generator: Generator, levels: Mapping[int, Level]) -> Capacity | None:
        """Sought from half of the largest closed-loop throughput on."""
        if self.options.slo is None:
            return None
        start_per_s = max(level.throughput_per_s for level in levels.values()) / 2
        indices = itertools.count(len(self.options.rates_per_s))
        return find_capacity(
            lambda rate: self._open(generator, rate, next(indices)), self.options.slo, start_per_s
        )


def _own_level(generator: Generator, endpoint: Endpoint, concurrency: int) -> Level:
    return run_level(generator, concurrency, lambda: statistics(endpoint), Driver.OWN)


def _with_usage(run: RunLevel, concurrency: int, served: ServedEngine) -> Level:
    """The level, with the processor time of a server that this run started."""
    if served.server is None:
        return run(concurrency)
    before, before_s = Condition.now(), processor_s(served.server.pid)
    level = run(concurrency)
    used_s, after = processor_s(served.server.pid) - before_s, Condition.now()
    disturbed = disturbance(before, after, own=False)
    marks = (*level.marks, f"disturbed: {disturbed}") if disturbed else level.marks
    return replace(level, server_share=used_s / (after.time_s - before.time_s), marks=marks)


def processor_s(pid: int) -> float:
    """Seconds of processor time of a process and all that it started and still runs."""
    import psutil

    used_s = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used_s += sum(process.cpu_times()[:2])  # user and system
    return used_s


def _suspects(
    levels: Mapping[int, Level], analysis: Analysis, stored: StoredLoad | None
) -> Sequence[int]:
    """Levels of cliffs that are not stored, to be measured again; of all where nothing is."""
    cliffs = new_cliffs(analysis.cliffs, stored) if stored else analysis.cliffs
    unproven = [cliff for cliff in cliffs if stored or not cliff.proven]
    return [n for n in levels if any(c.first <= n <= c.last for c in unproven)]


def judge_load(
    cliffs: Sequence[Cliff], capacity: Capacity | None, stored: StoredLoad, limit: float
) -> Judgement:
    """Compare what a served engine carries with what it carried.

    A cliff that the baseline lacks is REGRESSED, and so is a capacity whose whole interval is below
    the stored one's by more than the limit. Where the machine or the client made the cliff or ended
    the search, it is UNDECIDED.
    """
    new = new_cliffs(cliffs, stored)
    worse = [_cliff_reason(cliff) for cliff in new if cliff.blames_server]
    worse += _lost_capacity(capacity, stored, limit)
    unsure = [_cliff_reason(cliff) for cliff in new if not cliff.blames_server]
    if worse:
        return Judgement(Verdict.REGRESSED, tuple(worse))
    return Judgement(Verdict.UNDECIDED, tuple(unsure)) if unsure else Judgement(Verdict.PASS)


def _lost_capacity(capacity: Capacity | None, stored: StoredLoad, limit: float) -> list[str]:
    if capacity is None or str(capacity.slo) != stored.slo or capacity.high_per_s is None:
        return []
    if capacity.high_per_s >= stored.low_per_s / (1 + limit):
        return []
    return [
        f"holds {stored.slo} up to at most {capacity.high_per_s:.0f} infer/s, "
        f"where at least {stored.low_per_s:.0f} were stored"
    ]


def _cliff_reason(cliff: Cliff) -> str:
    word = "cause" if cliff.proven else "suspected cause"
    return (
        f"new cliff at concurrency {cliff.first} to {cliff.last} ({cliff.throughput_per_s:.0f} "
        f"infer/s at its lowest), {word} {cliff.cause}: {cliff.evidence}"
    )


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


def served_rig(served: ServedEngine, levels: Sequence[int], rng: random.Random) -> Rig:
    """The rig that times a served engine beside its yardstick on the same server.

    For every replicate all models are unloaded and loaded anew, in random order. Raises
    ServingError for a server that this run did not start: there is no yardstick on it.
    """
    served.write_yardsticks()

    @contextlib.contextmanager
    def open_arms(_levels: Sequence[int], order: random.Random) -> Iterator[Mapping[str, Arm]]:
        names = [CANDIDATE, CONTROL, SECOND_CONTROL]
        order.shuffle(names)
        arms: dict[str, Arm] = {}
        with contextlib.ExitStack() as stack:
            for name in names:
                exchange = _exchange(served, served.started.endpoint(name, Protocol.HTTP))
                generator = stack.enter_context(open_generator(exchange))
                generator.start()  # while the models load
                arms[name] = ServedArm(generator)
            served.load_anew(names)
            yield arms

    replicate_s = _REPLICATE_S * len(levels)
    return Rig(open_arms, replicate_s, rng, watch_self=False, centre=np.mean)


def _exchange(served: ServedEngine, endpoint: Endpoint) -> Exchange:
    """Requests for a model of the same server; what the yardstick answers is not checked."""
    source, known = served.source, served.exchange
    tolerance = known.tolerance if endpoint.model == CANDIDATE else float("inf")
    tokens, output = source.texts.padded, source.model.output
    return make_exchange(endpoint, tokens, output, known.expected, tolerance)
