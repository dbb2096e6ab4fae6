"""Interleaved timing: in every round the reference runs beside the candidate.

What both share (frequency, neighbours, thermal state) cancels in their ratio. Several replicates,
each a freshly loaded pair of engines, take turns, because calls of one instance all share its
placement in memory and their number adds no certainty about the next instance.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from enginegate.engines import Engine
from enginegate.stats import Replicate
from enginegate.workload import Batch

_SETTLE_BELOW_S = 0.05  # shorter calls are timed after an untimed one, with warm caches
_CHUNK = 4  # consecutive rounds of one replicate before the next takes its turn


@dataclass(frozen=True)
class Pair:
    """One replicate: a candidate and a reference, loaded together."""

    candidate: Engine
    reference: Engine


@dataclass(frozen=True)
class Budget:
    """How long to measure one cell.

    Attributes:
        time_s: seconds to spend on it.
        warmup_rounds: untimed rounds of every replicate.
        min_rounds: timed rounds of every replicate, whatever the time.
    """

    time_s: float
    warmup_rounds: int
    min_rounds: int


@dataclass(frozen=True)
class Samples:
    """Timings of one batch size: seconds per call, by replicate, candidate and reference paired."""

    batch: int
    replicates: tuple[Replicate, ...]

    @property
    def candidate_s(self) -> list[float]:
        """All timed calls of the candidate, in seconds."""
        return [seconds for candidate, _ in self.replicates for seconds in candidate]

    @property
    def reference_s(self) -> list[float]:
        """All timed calls of the reference, in seconds."""
        return [seconds for _, reference in self.replicates for seconds in reference]


class Interleaver:
    """Schedules the rounds of one cell; whoever holds the clock of the candidate calls it.

    Each round is `before()`, which times the reference, then `candidate()`, which the caller times.
    """

    def __init__(self, pairs: Sequence[Pair], batch: Batch, budget: Budget) -> None:
        self.batch_size = len(next(iter(batch.values())))
        self._batch = batch
        self._pairs = pairs
        self._round_s, self._settle = self._warm_up(budget.warmup_rounds)
        self.rounds = self._plan(budget)
        self._turns = self._schedule()
        self._now = 0
        self._order: list[int] = []
        self._reference_s: list[float] = []

    def before(self) -> None:
        """Time the reference of the replicate whose turn it is, and warm its candidate."""
        self._now = next(self._turns)
        pair = self._pairs[self._now]
        if self._settle:
            pair.reference.embed(self._batch)
        self._reference_s.append(_timed(pair.reference, self._batch))
        self._order.append(self._now)
        if self._settle:
            pair.candidate.embed(self._batch)

    def candidate(self) -> None:
        """The call to be timed."""
        self._pairs[self._now].candidate.embed(self._batch)

    def samples(self, candidate_s: Sequence[float]) -> Samples:
        """Pair the caller's timings, one per round in order, with the reference's."""
        rounds = list(zip(self._order, candidate_s, self._reference_s, strict=True))
        replicates = tuple(
            ([c for i, c, _ in rounds if i == index], [r for i, _, r in rounds if i == index])
            for index in range(len(self._pairs))
        )
        return Samples(self.batch_size, replicates)

    def _warm_up(self, rounds: int) -> tuple[float, bool]:
        """Seconds of one round, and whether calls are short enough to be settled."""
        for pair, _ in itertools.product(self._pairs, range(rounds)):
            pair.reference.embed(self._batch)
            pair.candidate.embed(self._batch)
        first = self._pairs[0]
        both_s = _timed(first.reference, self._batch) + _timed(first.candidate, self._batch)
        settle = both_s / 2 < _SETTLE_BELOW_S
        return both_s * (2 if settle else 1), settle

    def _plan(self, budget: Budget) -> int:
        per_replicate = int(budget.time_s / self._round_s / len(self._pairs))
        return len(self._pairs) * max(per_replicate, budget.min_rounds)

    def _schedule(self) -> Iterator[int]:
        """Replicate indices, in chunks, each used equally often over all rounds."""
        each = self.rounds // len(self._pairs)
        for start in range(0, each, _CHUNK):
            for index in range(len(self._pairs)):
                yield from itertools.repeat(index, min(_CHUNK, each - start))


def median_call_s(engine: Engine, batch: Batch, calls: int) -> float:
    """Median seconds of `calls` calls after two untimed ones; for choosing, not for judging."""
    for _ in range(2):
        engine.embed(batch)
    timings = sorted(_timed(engine, batch) for _ in range(calls))
    return timings[len(timings) // 2]


def _timed(engine: Engine, batch: Batch, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    engine.embed(batch)
    return clock() - start
