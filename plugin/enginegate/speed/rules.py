"""What is asked of a variant, by which rules, and what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from enginegate.errors import OptionError
from enginegate.speed.stats import FEWEST_REPLICATES, Anchor, Change, Errors, quantile
from enginegate.speed.timing import Replicate, Samples
from enginegate.verdicts import Judgement

P50, P99 = "p50", "p99"
METRICS = (P50, P99)
FLOOR_S = 50e-6  # a change of less than this never fails
ALARM = 0.01  # chance of a false `regressed` in a whole run, or in a fleet of runs
_MISS = 0.05
_MISS_SCREENING = 0.8  # of the error: most that pass do so in the screening
Key = tuple[int, str]


@dataclass(frozen=True)
class Question:
    """What is asked of one metric at one batch size.

    Attributes:
        anchor: what to compare with.
        limit: largest slowdown that passes, 0.05 for 5 %.
        floor_s: a change of fewer seconds passes whatever the limit.
        scale_s: seconds of one call of the baseline; None for those of the yardstick.
        earlier: e-value against the engine from an earlier run; 1 if there was none.
    """

    anchor: Anchor
    limit: float
    floor_s: float = 0.0
    scale_s: float | None = None
    earlier: float = 1.0

    def settled(self, replicates: Sequence[Replicate]) -> "Question":
        """The question with the floor taken into its limit."""
        scale_s = self.scale_s or quantile(Samples(0, tuple(replicates)).yardstick_s, 0.5)
        return replace(self, limit=max(self.limit, self.floor_s / scale_s), floor_s=0.0)


@dataclass(frozen=True)
class Rules:
    """How hard to try.

    Attributes:
        replicates: of the screening.
        max_time_s: of one variant, screening included; suspects get as long again as a whole
            screening takes in any case.
        alarm: chance of a false `regressed` in the whole run.
        miss: chance that a batch size slower than its limit passes.
        early: a batch size that is clear before ends its screening then.
    """

    replicates: int
    max_time_s: float
    alarm: float
    miss: float
    early: bool = True

    @property
    def miss_screening(self) -> float:
        """The share of `miss` for passing in the screening."""
        return _MISS_SCREENING * self.miss

    @property
    def miss_fresh(self) -> float:
        """The share of `miss` for passing on fresh data."""
        return self.miss - self.miss_screening


def gating_rules(replicates: int, max_time_s: float, share: float = 1.0) -> Rules:
    """The rules of a gated run. Raises OptionError for too few replicates.

    `share` is the part of the alarm error that it may spend: of a fleet, several runs share one.
    """
    if replicates < FEWEST_REPLICATES:
        raise OptionError(
            f"--gate-replicates {replicates}: at least {FEWEST_REPLICATES} are needed"
        )
    return Rules(replicates, max_time_s, share * ALARM, _MISS)


@dataclass(frozen=True)
class Finding:
    """What is said of one metric at one batch size.

    Attributes:
        change: with its interval.
        judgement: on it.
        errors: of the interval.
        confirmed: it rests on fresh data.
        vain: it was not followed up, as the time left could not have decided.
    """

    change: Change
    judgement: Judgement
    errors: Errors
    confirmed: bool = False
    vain: bool = False


@dataclass
class Screening:
    """The first data of a variant, as they come in.

    Attributes:
        taken: replicates by batch size.
        findings: on them.
        rules: that they are taken by.
        spent_s: seconds so far.
    """

    taken: dict[int, list[Replicate]]
    findings: dict[Key, Finding]
    rules: Rules
    spent_s: float = 0.0

    @property
    def rounds(self) -> int:
        """Replicates of the batch size that has most."""
        return max(map(len, self.taken.values()))

    @property
    def each_s(self) -> float:
        """Seconds of one replicate."""
        return max(self.spent_s / self.rounds, 1e-9)

    @property
    def whole_s(self) -> float:
        """Seconds that the variant may take; suspects get as long as a screening does."""
        return max(self.rules.max_time_s, 2 * self.rules.replicates * self.each_s)

    @property
    def left(self) -> int:
        """Fresh replicates that there is time for."""
        return int((self.whole_s - self.spent_s) / self.each_s + 1e-6)


@dataclass(frozen=True)
class Outcome:
    """A variant after its trial.

    Attributes:
        samples: all replicates, by batch size.
        findings: by batch size and metric, of those that a question was asked of.
    """

    samples: Mapping[int, Samples]
    findings: Mapping[Key, Finding]
