"""How sure a figure over texts is: bootstrap intervals. Pure and seeded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Statistic = Callable[..., Values]

LEVEL = 0.99
_RESAMPLES = 2000
_BATCH = 200  # resamples held in memory at once
_SEED = 20
_ROUNDING = 1e-12  # values nearer than this differ by the arithmetic only


@dataclass(frozen=True)
class Interval:
    """A figure over texts, with the interval that it would keep to with other such texts.

    Attributes:
        value: of the texts at hand.
        low: lower end of the 99 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """`0.950 (0.931 … 0.966)`."""
        return f"{self.value:.4g} ({self.low:.4g} … {self.high:.4g})"


def mean_interval(values: Values) -> Interval:
    """Mean of one value per query, values [queries], with its BCa interval over the queries.

    BCa (Efron 1987, Journal of the American Statistical Association 82) because such values pile up
    at 1. Where all are equal but for rounding, or there is one only, both ends are the value. The
    queries are drawn anew and the documents stay, so the interval is about other queries to these
    documents. Where texts are queries and documents at once, values of neighbours depend on each
    other, which the interval does not know; docs/guide.md has what that was measured to cost.
    """
    mean = float(values.mean())
    if np.ptp(values) < _ROUNDING:
        return Interval(mean, mean, mean)
    return _interval((values,), _mean, mean, "BCa")


def paired_interval(statistic: Statistic, *columns: Values) -> Interval:
    """`statistic(*columns, axis=-1)` of columns [rows], with its percentile interval over rows."""
    value = float(statistic(*columns, axis=-1))
    return _interval(columns, statistic, value, "percentile")


def _mean(values: Values, axis: int = -1) -> Values:
    means: Values = values.mean(axis=axis)
    return means


def _interval(
    columns: Sequence[Values],
    statistic: Statistic,
    value: float,
    method: Literal["BCa", "percentile"],
) -> Interval:
    from scipy import stats

    found = stats.bootstrap(
        list(columns),
        statistic,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        paired=True,
        confidence_level=LEVEL,
        method=method,
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
