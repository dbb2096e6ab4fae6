"""A change of time: in words, and its verdict."""

import math

from enginegate.speed.stats import Change
from enginegate.verdicts import Judgement, Verdict

NOT_SEEN = "cannot detect less than 100 %"
_TELLS = 20.0  # e-value: 1 / 0.05
TOO_NOISY = f"too noisy to tell ({NOT_SEEN})"


def judge_change(
    change: Change, limit: float, *, alarm: float = 0.0, earlier: float = 1.0
) -> Judgement:
    """Compare a change of time with the largest slowdown allowed (0.05 for 5 %).

    The whole interval beyond the limit is REGRESSED, the whole interval short of it PASS (IMPROVED
    when it is as far on the fast side); an interval that contains the limit is UNDECIDED. `earlier`
    is the e-value of an earlier run of the same engine: where together they reach 1/`alarm`, it is
    REGRESSED as well, and a rerun can only weigh it up, not throw the dice anew.
    """
    together = alarm > 0 and earlier > 1 and earlier * change.evidence >= 1 / alarm
    if change.low > 1 + limit:
        return Judgement(Verdict.REGRESSED, (f"{describe(change)}, limit {limit:.1%}",))
    if together:
        e_values = f"e-values {change.evidence:.3g} now, {earlier:.3g} before"
        said = f"{_figures(change)}, limit {limit:.1%}, with the run before ({e_values})"
        return Judgement(Verdict.REGRESSED, (said,))
    if change.high < 1 - limit:
        return Judgement(Verdict.IMPROVED, (describe(change),))
    if change.high < 1 + limit:
        return Judgement(Verdict.PASS)
    said = describe(change)
    if not is_noise(change):
        said += f" contains the limit of {limit:.1%}"
    return Judgement(Verdict.UNDECIDED, (said,))


def is_noise(change: Change) -> bool:
    """Tell if nothing can be read from it: no side is sure, and not even a doubling would be seen.

    One whose interval is wholly on a side of 1 tells which side, be the other end open; so does
    evidence against the limit that makes a false alarm of 5 % at most.
    """
    if change.low > 1 or change.high < 1 or change.evidence >= _TELLS:
        return False
    return not (change.low > 0 and change.high < math.inf and change.visible < 1)


def describe(change: Change) -> str:
    """`12.3 % slower (+9.8 … +14.9 %)`, or that nothing can be told."""
    if is_noise(change):
        return TOO_NOISY
    return _figures(change)


def _figures(change: Change) -> str:
    word = "slower" if change.ratio >= 1 else "faster"
    return f"{abs(100 * (change.ratio - 1)):.1f} % {word} ({_interval(change)})"


def _interval(change: Change) -> str:
    """`+9.8 … +14.9 %`; of one that is open on a side, its other end."""
    low, high = (f"{100 * (ratio - 1):+.1f}" for ratio in (change.low, change.high))
    known = math.isfinite(change.high)  # a saved report has null for infinity, which is read as NaN
    if change.low > 0:
        return f"{low} … {high} %" if known else f"at least {low} %"
    return f"at most {high} %" if known else "no interval"
