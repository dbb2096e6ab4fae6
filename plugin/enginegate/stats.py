"""Statistics of paired timings. Pure: no clock, no file, no global state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

Replicate = tuple[Sequence[float], Sequence[float]]  # candidate and reference seconds, paired

LEVEL = 0.95
FEWEST_REPLICATES = 2


@dataclass(frozen=True)
class Change:
    """A ratio of times, now / then, with its interval: above 1 is slower.

    Attributes:
        ratio: the estimate.
        low: lower end of the interval.
        high: upper end.
    """

    ratio: float
    low: float
    high: float


def quantile(samples: Sequence[float], q: float) -> float:
    """Quantile by linear interpolation (Hyndman and Fan's type 7)."""
    return float(np.quantile(np.asarray(samples, dtype=np.float64), q))


def log_ratio(replicate: Replicate) -> float:
    """Median over the rounds of log(candidate / reference) of one replicate."""
    candidate, reference = (np.asarray(arm, dtype=np.float64) for arm in replicate)
    return float(np.median(np.log(candidate / reference)))


def change_between(
    now: Sequence[Replicate], then: Sequence[Replicate], level: float = LEVEL
) -> Change | None:
    """Change of the candidate/reference ratio from `then` to `now`; None if it cannot be told.

    A replicate (freshly loaded engines), not a call, is the unit: calls of one instance share its
    placement in memory. Welch's interval for two means of log ratios, with Satterthwaite's degrees
    of freedom (Welch 1947, Biometrika 34). Needs two replicates on each side.
    """
    if min(len(now), len(then)) < FEWEST_REPLICATES:
        return None
    arms = [np.array([log_ratio(r) for r in side]) for side in (now, then)]
    variances = [float(arm.var(ddof=1) / len(arm)) for arm in arms]
    difference = float(arms[0].mean() - arms[1].mean())
    half = _half_width(variances, [len(arm) for arm in arms], level)
    low, ratio, high = np.exp([difference - half, difference, difference + half])
    return Change(float(ratio), float(low), float(high))


def _half_width(variances: Sequence[float], sizes: Sequence[int], level: float) -> float:
    total = sum(variances)
    if total == 0:
        return 0.0
    parts = [v * v / (n - 1) for v, n in zip(variances, sizes, strict=True)]
    freedom = total * total / sum(parts)
    return float(stdtrit(freedom, 0.5 + level / 2) * np.sqrt(total))
