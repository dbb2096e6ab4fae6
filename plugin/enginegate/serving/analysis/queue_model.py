"""What a closed loop on a server without queue delay gives, from the figures of one with it.

Without delay, Triton's dynamic batcher sends whatever waits as soon as an instance is free. With
one instance, each of N outstanding requests then goes round in a cycle of three parts: the
turnaround z between server and client, the wait for the batch that runs, the execution e(n) of its
own batch of n.

- Arrivals during one execution make the next batch: n = N e(n) / cycle, at least 1 and at most the
  largest batch.
- Who comes back at once waits a whole execution, who comes back at any time half of one:
  cycle = max(2 e(n), z + 1.5 e(n)). A request alone never waits. So with z below e(n) / 2, half of
  the requests are in service while the other half wait, and n = N / 2.
- The instance does not more than n texts in e(n): cycle >= N e(n) / n.

Assumed: e depends on the size of the batch only and is what the server counts as compute, plus an
overhead seen at levels where the instance never lacks work; z is that of the same level with delay.
Processors shared by clients, server front end and engine bend both, and after a delay they are slow
to wake up, so the prediction tends to be low at one or two outstanding requests. A turnaround
longer than an execution and always the same can lock a loop into a rhythm that no mean describes.
Several instances contend for processors or for a GPU, which a sweep with delay does not show: they
are not predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginegate.serving.records import Breakdown, Level

_FEWEST_SIZES = 2
_STRAIGHT = 0.15  # median distance / value up to which execution time is taken for a line
_STEPS = 60


@dataclass(frozen=True)
class Model:
    """Executions of one instance.

    Attributes:
        sizes: batch sizes in texts, ascending.
        execution_s: seconds of an execution by size, overhead included.
        largest: most texts in a batch.
    """

    sizes: tuple[float, ...]
    execution_s: tuple[float, ...]
    largest: int

    def seconds(self, size: float) -> float:
        """Of one execution of `size` texts: interpolated, and in proportion above the largest."""
        inside = float(np.interp(size, self.sizes, self.execution_s))
        return inside * max(1.0, size / self.sizes[-1])

    def throughput_per_s(self, concurrency: int, turnaround_s: float) -> float:
        """Texts a second with so many requests outstanding and no delay.

        `turnaround_s` is what a request spends outside queue and execution.
        """
        size = min(max(1.0, concurrency / 2), self.largest)
        for _ in range(_STEPS):
            cycle_s = self._cycle_s(concurrency, turnaround_s, size)
            size = min(max(1.0, concurrency * self.seconds(size) / cycle_s), self.largest)
        return concurrency / self._cycle_s(concurrency, turnaround_s, size)

    def _cycle_s(self, concurrency: int, turnaround_s: float, size: float) -> float:
        execution_s = self.seconds(size)
        free_s = turnaround_s + execution_s
        met_busy = min(1.0, concurrency * execution_s / free_s) * (1 - 1 / concurrency)
        at_least_s = execution_s * min(2, concurrency)
        all_texts_s = concurrency * execution_s / size
        return max(free_s + met_busy * execution_s / 2, at_least_s, all_texts_s)


def model_of(levels: Sequence[Level], slow: Sequence[Level], largest: int) -> Model:
    """The model of one instance without delay.

    `levels` are those of the sweep, `slow` those among them that waited for the delay. Raises
    ValueError if the server's figures are missing or show one batch size only.
    """
    known = [level for level in levels if level.breakdown and level.batches]
    sizes, compute = _compute(known)
    overhead_s = _overhead_s([level for level in known if level not in slow])
    return Model(sizes, tuple(seconds + overhead_s for seconds in compute), largest)


def _compute(levels: Sequence[Level]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Batch sizes, and the seconds of one, disturbed levels smoothed away."""
    seconds: dict[float, list[float]] = {}
    for level in levels:
        seconds.setdefault(round(request_batch(level)), []).append(compute_s(level.breakdown))
    if len(seconds) < _FEWEST_SIZES:
        raise ValueError("the server ran one batch size only")
    sizes = sorted(seconds)
    medians = np.array([np.median(seconds[size]) for size in sizes])
    return tuple(sizes), tuple(_smooth(np.array(sizes), medians).tolist())


def _smooth(sizes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """A robust line where it fits (Theil and Sen), else the nearest values that never fall."""
    from scipy.optimize import isotonic_regression
    from scipy.stats import theilslopes

    slope, intercept, _, _ = theilslopes(seconds, sizes)
    line = max(0.0, intercept) + max(0.0, slope) * sizes
    straight = np.median(np.abs(seconds / line - 1)) <= _STRAIGHT
    return np.asarray(line if straight else isotonic_regression(seconds).x)


def _overhead_s(levels: Sequence[Level]) -> float:
    """Seconds of an execution that the server does not count, from levels that never lack work."""
    uncounted = [
        mean_batch(level) / level.throughput_per_s - compute_s(level.breakdown)
        for level in levels
        if _has_backlog(level)
    ]
    return max(0.0, float(np.median(uncounted))) if uncounted else 0.0


def _has_backlog(level: Level) -> bool:
    """Tell if a batch runs, another waits, and twice what the turnaround holds is outstanding."""
    if level.breakdown is None:
        return False
    turnarounds = level.breakdown.turnaround_s / compute_s(level.breakdown)
    return level.concurrency >= mean_batch(level) * (1 + max(1.0, 2 * turnarounds))


def compute_s(breakdown: Breakdown | None) -> float:
    """Seconds of the execution that a request was in; 0 if unknown."""
    return breakdown.compute_s if breakdown else 0.0


def mean_batch(level: Level) -> float:
    """Texts of an execution, over the executions."""
    return sum(n * count for n, count in level.batches.items()) / sum(level.batches.values())


def request_batch(level: Level) -> float:
    """Texts of the execution that a request was in, over the requests: large batches count more."""
    texts = sum(n * count for n, count in level.batches.items())
    return sum(n * n * count for n, count in level.batches.items()) / texts


def utilisation(level: Level, instances: int) -> float:
    """Part of their time that the instances execute, by the server's figures."""
    executions_per_s = level.throughput_per_s / mean_batch(level)
    return executions_per_s * compute_s(level.breakdown) / instances
