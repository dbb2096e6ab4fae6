"""A change of time: in words, and its verdict."""

import math

from enginegate.speed.stats import Change
from enginegate.verdicts import Judgement, Verdict


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


def describe(change: Change) -> str:
    """`12.3 % slower (+9.8 … +14.9 %)`."""
    word = "slower" if change.ratio >= 1 else "faster"
    interval = f"{_percent(change.low)} … {_percent(change.high)} %"
    return f"{abs(100 * (change.ratio - 1)):.1f} % {word} ({interval})"


def _percent(ratio: float) -> str:
    """A ratio as a signed change in per cent; `?` where nothing is known."""
    return f"{100 * (ratio - 1):+.1f}" if 0 < ratio < math.inf else "?"
