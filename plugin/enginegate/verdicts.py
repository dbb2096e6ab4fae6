"""The words a check ends in, the exit statuses they lead to, and the words of some options."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType


class Verdict(StrEnum):
    """What is said of one check."""

    PASS = "pass"  # noqa: S105
    FLAGGED = "flagged"
    FAIL = "fail"
    IDENTICAL = "identical"
    IMPROVED = "improved"
    REGRESSED = "regressed"
    UNDECIDED = "undecided"
    INVALID = "invalid"
    NO_BASELINE = "no baseline"
    INCOMPARABLE = "incomparable"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reasons in words."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


class GateLevel(StrEnum):
    """Which verdicts fail: also `undecided`; `regressed` and `invalid`; none; none is sought."""

    STRICT = "strict"
    NORMAL = "normal"
    WARN = "warn"
    OFF = "off"


class Refresh(StrEnum):
    """Which baselines to write."""

    NONE = "none"
    ALL = "all"
    MISSING = "missing"


class Exit(IntEnum):
    """Exit statuses beside pytest's own, gravest first; 1 stays for every other failed test."""

    EMBEDDINGS = 10
    REGRESSED = 11
    ERROR = 12
    INVALID = 13
    UNPROVEN = 14
    UNDECIDED = 15


_EXITS: Mapping[str, Exit] = MappingProxyType(
    {
        Verdict.FAIL: Exit.EMBEDDINGS,
        Verdict.FLAGGED: Exit.EMBEDDINGS,
        Verdict.REGRESSED: Exit.REGRESSED,
        Verdict.INVALID: Exit.INVALID,
        Verdict.NO_BASELINE: Exit.UNPROVEN,
        Verdict.INCOMPARABLE: Exit.UNPROVEN,
        Verdict.UNDECIDED: Exit.UNDECIDED,
        "error": Exit.ERROR,
    }
)


def exit_status(failures: Iterable[str]) -> int:
    """The gravest of the reasons that checks failed for; 1 if one failed for another; 0 for none.

    A reason is a verdict or `error`.
    """
    found = [_EXITS.get(failure) for failure in failures]
    return 1 if None in found else min((int(e) for e in found if e), default=0)
