"""The rules that lead to a verdict."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from enginegate.accuracy import Deltas, Limits, violations
from enginegate.cliffs import new_cliffs
from enginegate.levels import Capacity, Cliff, StoredLoad
from enginegate.quality.retrieval import Retrieval, rank_violations, unsure
from enginegate.quality.sts import Sts, sts_violations
from enginegate.stats import Change
from enginegate.words import Verdict


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reasons in words."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def judge_accuracy(
    deltas: Deltas,
    limits: Limits,
    tight: Limits,
    retrieval: Retrieval | None = None,
    sts: Sts | None = None,
) -> Judgement:
    """FAIL beyond `limits`, FLAGGED within them but beyond the `tight` ones, else PASS.

    A limit on rankings or on labelled pairs is broken where the whole interval says so, or by a
    single text; one that the interval holds is given as a reason, and decides nothing.
    """
    held = unsure(retrieval, limits) if retrieval else ()
    if broken := _broken(deltas, retrieval, sts, limits):
        return Judgement(Verdict.FAIL, (*broken, *held))
    if loose := _broken(deltas, retrieval, sts, tight):
        return Judgement(Verdict.FLAGGED, (_within(limits, loose), *loose, *held))
    return Judgement(Verdict.PASS, held)


def _broken(
    deltas: Deltas, retrieval: Retrieval | None, sts: Sts | None, limits: Limits
) -> tuple[str, ...]:
    ranks = rank_violations(retrieval, limits) if retrieval else ()
    pairs = sts_violations(sts, limits) if sts else ()
    return (*violations(deltas, limits), *ranks, *pairs)


def _within(limits: Limits, loose: Sequence[str]) -> str:
    """The own limits of what is beyond tighter ones, each of which begins with its name."""
    beyond = {text.partition(" ")[0] for text in loose}
    own = ((name, value) for name, value in asdict(limits).items() if name in beyond)
    allowed = ", ".join(f"{name} {value:g}" for name, value in own)
    return f"within its own looser limits ({allowed}), beyond those of fp16"


def judge_change(
    change: Change, limit: float, *, alarm: float = 0.0, earlier: float = 1.0
) -> Judgement:
    """Compare a change of time with the largest slowdown allowed (0.05 for 5 %).

    The whole interval beyond the limit is REGRESSED, the whole interval short of it PASS (IMPROVED
    when it is as far on the fast side); an interval that holds the limit is UNDECIDED. `earlier` is
    the e-value of an earlier run of the same engine: where both together reach 1/`alarm`, that is
    REGRESSED as well, and a rerun can only weigh it up, not throw the dice anew.
    """
    together = alarm > 0 and earlier > 1 and earlier * change.evidence >= 1 / alarm
    if change.low > 1 + limit:
        return Judgement(Verdict.REGRESSED, (f"{describe(change)}, limit {limit:.1%}",))
    if together:
        e_values = f"e-values {change.evidence:.3g} now, {earlier:.3g} before"
        said = f"{describe(change)}, limit {limit:.1%}, with the run before ({e_values})"
        return Judgement(Verdict.REGRESSED, (said,))
    if change.high < 1 - limit:
        return Judgement(Verdict.IMPROVED, (describe(change),))
    if change.high < 1 + limit:
        return Judgement(Verdict.PASS)
    return Judgement(Verdict.UNDECIDED, (f"{describe(change)} holds the limit of {limit:.1%}",))


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


def describe(change: Change) -> str:
    """`12.3 % slower (+9.8 … +14.9 %)`."""
    word = "slower" if change.ratio >= 1 else "faster"
    interval = f"{_percent(change.low)} … {_percent(change.high)} %"
    return f"{abs(100 * (change.ratio - 1)):.1f} % {word} ({interval})"


def _percent(ratio: float) -> str:
    """A ratio as a signed change in per cent; `?` where nothing is known."""
    return f"{100 * (ratio - 1):+.1f}" if 0 < ratio < math.inf else "?"
