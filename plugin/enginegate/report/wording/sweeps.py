"""Sweeps in words: the reference report's text form, cliffs, saturation.

Throughput is in infer/sec here, as there: texts answered per second, one text a request.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from enginegate.serving import Analysis, Cliff, Level

_FEWEST, _NEAR = 3, 4.0  # levels within this factor of the largest, to tell what is at the top
ALIKE = 0.05  # largest typical difference in throughput of engines that are called equal


def level_line(level: Level) -> str:
    """One level as the reference report prints it."""
    return (
        f"Concurrency: {level.concurrency}, throughput: {level.throughput_per_s:g} infer/sec, "
        f"latency {1e6 * level.latency.mean_s:.0f} usec"
    )


def analysis_lines(analysis: Analysis, levels: Sequence[Level]) -> Iterator[str]:
    """The findings of a sweep of these levels, a statement a line."""
    for cliff in analysis.cliffs:
        yield from cliff_lines(cliff)
    yield _saturation_line(analysis, levels)
    yield from (f"note: {note}" for note in analysis.notes)


def marked_lines(levels: Sequence[Level]) -> Iterator[str]:
    """The levels that are not to be trusted, and why."""
    marked = (level for level in levels if level.marks)
    return (f"concurrency {level.concurrency}: {'; '.join(level.marks)}" for level in marked)


def cliff_lines(cliff: Cliff) -> Iterator[str]:
    """Where, how deep, why, and what to do."""
    yield (
        f"cliff at concurrency {_range(cliff)}: {cliff.throughput_per_s:.0f} infer/sec at its "
        f"lowest{_expected(cliff)}"
    )
    yield f"{'cause' if cliff.proven else 'suspected cause'}: {cliff.cause}; {cliff.evidence}"
    if cliff.advice:
        yield f"advice: {cliff.advice}{_promised(cliff)}"


def _range(cliff: Cliff) -> str:
    return f"{cliff.first}" if cliff.first == cliff.last else f"{cliff.first}-{cliff.last}"


def _expected(cliff: Cliff) -> str:
    if not cliff.expected_per_s > cliff.throughput_per_s:  # slow by its latency, or not known
        return ""
    return f", its neighbours lead one to expect {cliff.expected_per_s:.0f}"


def _promised(cliff: Cliff) -> str:
    if not cliff.promised_per_s:
        return ""
    ordered = sorted((cliff.tried_per_s or cliff.promised_per_s).items())
    shown = dict(ordered[i] for i in (0, len(ordered) // 2, -1))
    each = (f"{per_s:.0f} at {n}" for n, per_s in shown.items())
    said = "tried in this run, it gave" if cliff.tried_per_s else "it should give"
    return f"; {said} {', '.join(each)} infer/sec"


def _saturation_line(analysis: Analysis, levels: Sequence[Level]) -> str:
    if analysis.saturated_from is None or analysis.saturation_per_s is None:
        return _unsaturated(analysis, [level.concurrency for level in levels])
    return (
        f"saturated from concurrency {analysis.saturated_from} on: "
        f"about {analysis.saturation_per_s:.0f} infer/sec, more load only raises latency"
    )


def _unsaturated(analysis: Analysis, concurrencies: Sequence[int]) -> str:
    sound = [n for n in concurrencies if not any(c.first <= n <= c.last for c in analysis.cliffs)]
    top = max(sound, default=0)
    if sum(n * _NEAR >= top for n in sound) < _FEWEST:
        return "too few levels to tell if it is saturated: it takes three near the largest"
    where = "at the largest concurrency" if top == max(concurrencies) else "before the cliff"
    return f"not saturated {where}"


def compare_engines(sweeps: Mapping[str, Sequence[Level]]) -> tuple[str, ...]:
    """Engines by their largest throughput, and each in words beside the next faster one."""
    best = {name: max(levels, key=_throughput) for name, levels in sweeps.items()}
    order = sorted(best, key=lambda name: -best[name].throughput_per_s)
    ranks = (f"{name} {best[name].throughput_per_s:.0f}" for name in order)
    first = f"largest throughput, infer/sec: {', '.join(ranks)}"
    return (first, *(_pair(faster, slower, sweeps) for faster, slower in pairwise(order)))


def _pair(faster: str, slower: str, sweeps: Mapping[str, Sequence[Level]]) -> str:
    largest = [max(map(_throughput, sweeps[name])) for name in (slower, faster)]
    difference = _typical_difference(sweeps[slower], sweeps[faster])
    if abs(difference) <= ALIKE and largest[0] >= (1 - ALIKE) * largest[1]:
        return f"{slower} equals {faster} within a few per cent ({difference:+.1%} typically)"
    return (
        f"{slower}'s largest throughput ({largest[0]:.0f} infer/sec) is below {faster}'s "
        f"({largest[1]:.0f}){_everywhere(sweeps[slower], sweeps[faster])}"
    )


def _everywhere(slower: Sequence[Level], faster: Sequence[Level]) -> str:
    ratios = throughput_ratios(slower, faster)
    if len(ratios) < len(slower) or max(ratios) >= 1:
        return ""
    return f", and so is its throughput at each of {len(ratios)} concurrencies"


def throughput_ratios(one: Sequence[Level], other: Sequence[Level]) -> list[float]:
    """Throughput of one / other at their common concurrencies."""
    theirs = {level.concurrency: level.throughput_per_s for level in other}
    return [x.throughput_per_s / theirs[x.concurrency] for x in one if x.concurrency in theirs]


def _typical_difference(one: Sequence[Level], other: Sequence[Level]) -> float:
    """Median over the common concurrencies of one / other - 1; NaN without any."""
    ratios = throughput_ratios(one, other)
    return sorted(ratios)[len(ratios) // 2] - 1 if ratios else math.nan


def _throughput(level: Level) -> float:
    return level.throughput_per_s
