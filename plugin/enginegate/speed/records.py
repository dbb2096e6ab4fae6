"""Timings of a variant, judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginegate.speed.stats import Change, ratio_of
from enginegate.speed.timing import Samples
from enginegate.verdicts import Judgement, Verdict

_COMPARED = (Verdict.PASS, Verdict.IMPROVED, Verdict.UNDECIDED, Verdict.REGRESSED)


@dataclass(frozen=True)
class Speed:
    """Timings of one variant at one batch size, judged.

    Attributes:
        batch: texts per call; of a served engine the requests outstanding, one text each.
        calls: timed calls of the engine.
        p50_s: median of one call.
        p99_s: lower end, estimate and upper end of the 99th percentile; None under 459 calls.
        texts_per_s: batch / p50_s; of a served engine batch / mean, by Little's law.
        yardstick_p50_s: median call of what it was timed beside.
        log_ratios: log(engine / yardstick) of each replicate, by metric.
        blocks, disturbed: mirrored blocks, and by what each disturbed one was disturbed.
        change, judgement: of the median against the baseline.
        tail_change, tail_judgement: of the p99.
    """

    batch: int
    calls: int
    p50_s: float
    p99_s: tuple[float, float, float] | None
    texts_per_s: float
    yardstick_p50_s: float
    log_ratios: Mapping[str, Sequence[float]]
    blocks: int
    disturbed: tuple[str, ...]
    change: Change | None
    judgement: Judgement
    tail_change: Change | None = None
    tail_judgement: Judgement | None = None

    @property
    def yardstick_ratio(self) -> float:
        """Time of the yardstick / time of the engine; above 1 is faster."""
        return self.speedup[1]

    @property
    def speedup(self) -> tuple[float, float, float]:
        """The same with its interval of 95 %: low end, estimate, high end."""
        logs = self.log_ratios.get("p50") or [math.log(self.p50_s / self.yardstick_p50_s)]
        return ratio_of([-log for log in logs])

    @property
    def verdict(self) -> Verdict:
        """That of the median, unless the p99 regressed."""
        tail = self.tail_judgement
        if tail and tail.verdict is Verdict.REGRESSED and self.judgement.verdict in _COMPARED:
            return Verdict.REGRESSED
        return self.judgement.verdict


@dataclass(frozen=True)
class Unchanged:
    """The answer for an engine that is its baseline's own: nothing was timed."""

    judgement: Judgement


@dataclass(frozen=True)
class Measured:
    """The samples of one batch size, and what is said of them."""

    samples: Samples
    speed: Speed
