"""Where a sweep breaks, where it is saturated, and what is not to be trusted in it. Pure.

A closed loop on a healthy server has a throughput that never falls, and a latency that never falls,
as concurrency grows. A level is slow if it contradicts a level beside it:

- less throughput than levels below it already reached, or
- more latency than levels above it need, or
- the server's own figures show that requests waited for a delay (`causes.waits`).

The contradiction must be material: a factor of 1.25, or five standard deviations of the sweep's own
noise where that is more, to a second level on the other side, so that one lucky level condemns no
other; or a factor of 2 to any one level. A single slow level must be slow by a factor of 2, or be
so by the server's figures. Why five: a sweep of 32 levels makes about 500 comparisons, and the
difference of two levels has sqrt(2) standard deviations, so chance goes beyond it about 0.1 times
in a sweep, and almost never twice side by side.

Noise is estimated from each level's distance to the line between its neighbours, in logarithms
(pseudo-residuals: Gasser, Sroka and Jennen-Steinmetz 1986, Biometrika 73), by their median: breaks
are few, so they do not raise it.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from enginegate.config import Deployment
from enginegate.serving.analysis.causes import Neighbourhood, find_cause, is_plateau, promise, waits
from enginegate.serving.records import Analysis, Cause, Cliff, Level, StoredLoad

MATERIAL, ALONE = 1.25, 2.0
NOISE_FACTOR = 5.0
_MAD_TO_SD = 1.4826
_FEWEST_FOR_NOISE = 5  # levels
_FLAT = 0.10  # growth per doubling of concurrency
_PLATEAU = 0.05
_FEWEST_FLAT = 3  # levels
_FLAT_SPAN = 1.5  # in concurrency
_LITTLE = 0.10
_BRIDGED = 2  # positions: one sound level between slow ones


def analyse(levels: Sequence[Level], deployment: Deployment | None) -> Analysis:
    """Cliffs, saturation and notes of one engine's sweep, in any order.

    `deployment` is None where the configuration is unknown. Raises ValueError if two levels have
    the same concurrency or one has no throughput.
    """
    ordered = _checked(levels)
    runs = [_to_the_end(ordered, *run) for run in _runs(ordered, deployment)]
    cliffs = tuple(_cliff(ordered, *run, deployment) for run in runs)
    sound = [level for level in ordered if not _covered(level, cliffs)]
    start = _saturation(sound)
    plateau = float(np.median(_throughputs(sound[start:]))) if start is not None else None
    return Analysis(
        cliffs,
        None if start is None else sound[start].concurrency,
        plateau,
        tuple(_notes(ordered, cliffs)),
    )


def littles_error(level: Level) -> float:
    """Throughput x mean latency / concurrency - 1: 0 in a closed loop that was counted rightly."""
    return level.throughput_per_s * level.latency.mean_s / level.concurrency - 1


def new_cliffs(now: Sequence[Cliff], then: StoredLoad) -> tuple[Cliff, ...]:
    """The cliffs of now of which more than half of the levels swept then were none then.

    A cliff of which no level was swept then tells no change.
    """
    return tuple(cliff for cliff in now if _is_new(cliff, then))


def _is_new(cliff: Cliff, then: StoredLoad) -> bool:
    swept = [n for n in then.levels if cliff.first <= n <= cliff.last]
    known = [n for n in swept if any(first <= n <= last for first, last in then.cliffs)]
    return len(known) < len(swept) / 2


def noise(levels: Sequence[Level]) -> float:
    """Standard deviation of log throughput around the line of its neighbours; 0 if too few."""
    if len(levels) < _FEWEST_FOR_NOISE:
        return 0.0
    x, y = _log_concurrency(levels), np.log(_throughputs(levels))
    weight = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    distance = y[1:-1] - (1 - weight) * y[:-2] - weight * y[2:]
    scaled = distance / np.sqrt(1 + weight**2 + (1 - weight) ** 2)
    return float(_MAD_TO_SD * np.median(np.abs(scaled)))


def _checked(levels: Sequence[Level]) -> list[Level]:
    ordered = sorted(levels, key=lambda level: level.concurrency)
    for below, above in pairwise(ordered):
        if below.concurrency == above.concurrency:
            raise ValueError(f"concurrency {above.concurrency} was given twice")
    if bad := [x.concurrency for x in ordered if not x.throughput_per_s * x.latency.mean_s > 0]:
        raise ValueError(f"concurrency {bad[0]} has no throughput or no latency")
    return ordered


def _runs(levels: Sequence[Level], deployment: Deployment | None) -> Iterator[tuple[int, int]]:
    """Indices, both inside, of slow levels side by side; one sound level between is bridged."""
    material = max(MATERIAL, min(ALONE, math.exp(NOISE_FACTOR * noise(levels))))
    proven = _costly_waits(levels, deployment)
    slow = [i for i in range(len(levels)) if proven[i] or _contradicted(levels, i, material)]
    for first, last in _groups(slow):
        alone = first == last and not proven[first]
        if not alone or _contradicted(levels, first, ALONE):
            yield first, last


def _costly_waits(levels: Sequence[Level], deployment: Deployment | None) -> list[bool]:
    """By level: whether it waited for the delay, and should be materially faster without."""
    waiting = [level for level in levels if waits(level, deployment)]
    promised = promise(levels, waiting, deployment) if deployment else {}
    return [
        level in waiting
        and promised.get(level.concurrency, math.inf) >= MATERIAL * level.throughput_per_s
        for level in levels
    ]


def _to_the_end(levels: Sequence[Level], first: int, last: int) -> tuple[int, int]:
    """The run, up to the end if it waits as long there as inside: growing load hides a delay."""
    return (first, len(levels) - 1) if is_plateau(levels[first:]) else (first, last)


def _groups(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each group of indices that are at most two apart."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] - indices[end - 1] > _BRIDGED:
            yield indices[start], indices[end - 1]
            start = end


def _contradicted(levels: Sequence[Level], index: int, material: float) -> bool:
    """Tell if throughput is below what was reached, or latency above what is needed later."""
    level = levels[index]
    reached = [other.throughput_per_s / level.throughput_per_s for other in levels[:index]]
    needed = [level.latency.mean_s / other.latency.mean_s for other in levels[index + 1 :]]
    return any(_speaks(ratios, material) for ratios in (reached, needed))


def _speaks(ratios: Sequence[float], material: float) -> bool:
    """One ratio of ALONE, or two that are material."""
    largest = sorted(ratios, reverse=True)[:2]
    return max(largest, default=0.0) >= ALONE or (len(largest) > 1 and largest[1] >= material)


def _cliff(levels: Sequence[Level], first: int, last: int, deployment: Deployment | None) -> Cliff:
    inside = tuple(levels[first : last + 1])
    before = levels[first - 1] if first else None
    after = levels[last + 1] if last + 1 < len(levels) else None
    finding = find_cause(Neighbourhood(inside, before, after), deployment)
    lowest = min(inside, key=lambda level: level.throughput_per_s)
    tells = deployment and finding.proven and finding.cause is Cause.QUEUE_DELAY
    return Cliff(
        first=inside[0].concurrency,
        last=inside[-1].concurrency,
        throughput_per_s=lowest.throughput_per_s,
        expected_per_s=_expected_per_s(lowest.concurrency, before, after),
        cause=finding.cause,
        proven=finding.proven,
        evidence=finding.evidence,
        advice=finding.advice,
        promised_per_s=promise(levels, inside, deployment) if tells and deployment else {},
    )


def _expected_per_s(concurrency: int, before: Level | None, after: Level | None) -> float:
    """On the line between the neighbours in logarithms.

    Without one above, what the one below had; without one below, in proportion to the one above.
    NaN without any.
    """
    if before and after:
        x = _log_concurrency([before, after])
        y = np.log(_throughputs([before, after]))
        return float(np.exp(np.interp(math.log(concurrency), x, y)))
    if before:
        return before.throughput_per_s
    return after.throughput_per_s * concurrency / after.concurrency if after else math.nan


def _saturation(levels: Sequence[Level]) -> int | None:
    """Index of the first level at the plateau that lasts to the end; None if there is none."""
    spread = max(_PLATEAU, 2 * noise(levels))
    for start in range(len(levels) - _FEWEST_FLAT + 1):
        tail = levels[start:]
        reached = tail[0].throughput_per_s >= (1 - spread) * np.median(_throughputs(tail))
        wide = tail[-1].concurrency >= _FLAT_SPAN * tail[0].concurrency
        if reached and wide and _growth(tail) < _FLAT:
            return start
    return None


def _growth(levels: Sequence[Level]) -> float:
    """Median growth of throughput per doubling of concurrency, over all pairs (Theil and Sen)."""
    x, y = _log_concurrency(levels), np.log(_throughputs(levels))
    above, below = np.triu_indices(len(levels), 1)[::-1]
    return float(np.expm1(math.log(2) * np.median((y[above] - y[below]) / (x[above] - x[below]))))


def _notes(levels: Sequence[Level], cliffs: Sequence[Cliff]) -> Iterator[str]:
    wrong = [level.concurrency for level in levels if abs(littles_error(level)) > _LITTLE]
    if wrong:
        yield (
            "throughput x latency is not the concurrency within 10 % at concurrency "
            f"{', '.join(map(str, wrong))}: requests were lost, or outstanding ones were fewer"
        )
    for cliff in cliffs:
        if cliff.cause is Cause.QUEUE_DELAY and not cliff.proven:
            yield from _unexplained(levels, cliff)


def _unexplained(levels: Sequence[Level], cliff: Cliff) -> Iterator[str]:
    """Levels below the cliff that a queue delay alone would make slow too."""
    below = [str(level.concurrency) for level in levels if level.concurrency < cliff.first]
    if below:
        yield (
            f"concurrency {', '.join(below)} below the break at {cliff.first}-{cliff.last} does "
            "not wait, as if those sizes were preferred as well; but a Triton batcher with them in "
            "its list would send them at once above too, so queue delay alone does not explain it: "
            "compare the configurations that the levels were measured with"
        )


def _covered(level: Level, cliffs: Sequence[Cliff]) -> bool:
    return any(cliff.first <= level.concurrency <= cliff.last for cliff in cliffs)


def _throughputs(levels: Sequence[Level]) -> np.ndarray:
    return np.array([level.throughput_per_s for level in levels])


def _log_concurrency(levels: Sequence[Level]) -> np.ndarray:
    return np.log([level.concurrency for level in levels])
