"""The words a run ends in, and the rules that lead to them."""

from dataclasses import asdict, dataclass
from enum import StrEnum

from enginegate.accuracy import Deltas, Limits, violations
from enginegate.stats import Change


class Verdict(StrEnum):
    """What is said of one check. Only FAIL and REGRESSED fail a test by themselves."""

    PASS = "pass"  # noqa: S105
    FLAGGED = "flagged"
    FAIL = "fail"
    IMPROVED = "improved"
    REGRESSED = "regressed"
    UNDECIDED = "undecided"
    NO_BASELINE = "no baseline"
    INCOMPARABLE = "incomparable"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reasons in words."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def judge_accuracy(deltas: Deltas, limits: Limits, tight: Limits) -> Judgement:
    """FAIL beyond `limits`, FLAGGED within them but beyond the `tight` ones, else PASS."""
    if broken := violations(deltas, limits):
        return Judgement(Verdict.FAIL, broken)
    if loose := violations(deltas, tight):
        return Judgement(Verdict.FLAGGED, (_within(limits), *loose))
    return Judgement(Verdict.PASS)


def _within(limits: Limits) -> str:
    allowed = ", ".join(f"{name} {value:g}" for name, value in asdict(limits).items())
    return f"within its own looser limits ({allowed}), beyond those of fp16"


def judge_change(change: Change | None, limit: float) -> Judgement:
    """Compare a change of time with the largest slowdown allowed (0.05 for 5 %).

    The whole interval beyond the limit is REGRESSED, the whole interval short of it PASS (IMPROVED
    when it is as far on the fast side); an interval that holds the limit is UNDECIDED.
    """
    if change is None:
        return Judgement(Verdict.UNDECIDED, ("fewer than two replicates on one side",))
    if change.low > 1 + limit:
        return Judgement(Verdict.REGRESSED, (f"{describe(change)}, limit {limit:.0%}",))
    if change.high < 1 - limit:
        return Judgement(Verdict.IMPROVED, (describe(change),))
    if change.high < 1 + limit:
        return Judgement(Verdict.PASS)
    wide = (
        f"{describe(change)} holds the limit of {limit:.0%}: measure longer or with more replicates"
    )
    return Judgement(Verdict.UNDECIDED, (wide,))


def describe(change: Change) -> str:
    """`12.3 % slower (9.8 … 14.9)`."""
    values = [100 * (value - 1) for value in (change.ratio, change.low, change.high)]
    word = "slower" if values[0] >= 0 else "faster"
    return f"{abs(values[0]):.1f} % {word} ({values[1]:+.1f} … {values[2]:+.1f} %)"
