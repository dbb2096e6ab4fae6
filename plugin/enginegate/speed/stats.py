"""Statistics of replicates. Pure: no clock, no file, no global state.

A replicate is one instantiation of the engines; its value is a log ratio of times. Calls of one
instance share its placement in memory, so only replicates are taken as independent.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_REPLICATES = 3

FEWEST_FOR_P99 = 459  # 0.99 ** 459 < 0.01: then the largest is above the quantile with 99 %
POWER = 0.8
_EFFECT_SD = 2.0  # of the prior on shift / standard deviation; see docs/measurement.md
_PRIOR_FREEDOM = 10  # sessions that the assumed spread between sessions counts for
_LEAST_SESSION_SD = 0.005  # of a log ratio between sessions
_MOST_REPLICATES = 4096


@dataclass(frozen=True)
class Errors:
    """Error rates of one decision.

    Attributes:
        alarm: chance that an engine no slower than the limit is called regressed.
        miss: chance that an engine slower than the limit passes.
    """

    alarm: float
    miss: float


@dataclass(frozen=True)
class Anchor:
    """What today's log ratio is compared with.

    Attributes:
        level: expected log ratio of an unchanged engine.
        error: standard error of that expectation; 0 where both were measured in one run.
        freedom: degrees of freedom of `error`.
    """

    level: float = 0.0
    error: float = 0.0
    freedom: float = math.inf


@dataclass(frozen=True)
class Change:
    """A ratio of times, now / then, with its interval: above 1 is slower.

    Attributes:
        ratio: the estimate.
        low: lower end; the truth is below it with the alarm error at most.
        high: upper end; the truth is above it with the miss error at most.
        evidence: e-value against "not slower than the limit".
        visible: smallest slowdown that is found in 4 of 5 such measurements, 0.07 for 7 %;
            infinite if none is.
    """

    ratio: float
    low: float
    high: float
    evidence: float
    visible: float


def alarm_share(alarm: float, suspect: int) -> float:
    """Error for the `suspect`-th suspect (from 1) of a run whose total error is `alarm`.

    Alpha spending alarm / (k (k + 1)), which sums to `alarm` over any number of suspects, so that a
    verdict need not wait for the others (online control of the family-wise error, Tian and Ramdas
    2021, Statistical Methods in Medical Research 30).
    """
    return alarm / (suspect * (suspect + 1))


def quantile(samples: Sequence[float], q: float) -> float:
    """Quantile by linear interpolation (Hyndman and Fan's type 7)."""
    return float(np.quantile(np.asarray(samples, dtype=np.float64), q))


Sessions = Sequence[Sequence[float]]


def anchor_of(sessions: Sessions, others: Sequence[Sessions] = ()) -> Anchor:
    """The log ratio expected of a new session of an unchanged engine, from those of stored ones.

    Sessions differ by about as much as the replicates in them (measured: docs/measurement.md). That
    assumption counts like ten degrees of freedom, or those of the replicates if they are fewer,
    beside what the sessions of `others`, of the same machine, show in units of their replicates,
    and what its own show (scaled inverse chi-squared update, as in Gelman et al., Bayesian Data
    Analysis, 2.6). The error is that of predicting one more session:
    s_between² (1 + 1/S) + s_within² / n.
    """
    count, replicates = len(sessions), sum(len(session) for session in sessions)
    within, shown = _variances(sessions)
    prior, ratio = _expected_ratio(others, min(_PRIOR_FREEDOM, max(1, replicates - count)))
    freedom = prior + count - 1
    assumed = max(ratio * within, _LEAST_SESSION_SD**2)
    between = (prior * assumed + (count - 1) * shown) / freedom
    error = math.sqrt(between * (1 + 1 / count) + within / replicates)
    return Anchor(float(np.mean([np.mean(session) for session in sessions])), error, freedom)


def _variances(sessions: Sessions) -> tuple[float, float]:
    """The variance of replicates in their session, and what that leaves of the sessions'."""
    means = np.array([np.mean(session) for session in sessions])
    count, replicates = len(means), sum(len(session) for session in sessions)
    within = _pooled_variance(sessions)
    between = float(means.var(ddof=1)) - within * count / replicates if count > 1 else 0.0
    return within, max(0.0, between)


def _expected_ratio(others: Sequence[Sessions], prior: float) -> tuple[float, float]:
    """The weight and size of between / within variance to expect; `prior` is that of a size of 1.

    Cells of one machine are measured in the same sessions and share their states, so they count by
    their square root.
    """
    shown = [(len(s) - 1, *_variances(s)) for s in others if len(s) > 1]
    known = [(weight, between / within) for weight, within, between in shown if within > 0]
    total = sum(weight for weight, _ in known)
    if not total:
        return prior, 1.0
    weight = total / math.sqrt(len(known))
    mean = sum(share * ratio for share, ratio in known) / total
    return prior + weight, (prior + weight * mean) / (prior + weight)


def _pooled_variance(sessions: Sequence[Sequence[float]]) -> float:
    squares = sum(float(np.var(s)) * len(s) for s in sessions)
    return squares / max(1, sum(len(s) - 1 for s in sessions))


def e_value(values: Sequence[float], null: float) -> float:
    """Evidence that the mean of `values` is above `null`; 1/error of it is an alarm at any time.

    Bayes factor of the one-sided t-test with right-Haar prior on the standard deviation and a
    half-normal prior on shift / standard deviation. It is an e-process for normal values: looking
    after every replicate does not inflate its error (Lai 1976, Annals of Statistics 4;
    Pérez-Ortiz et al. 2024, Annals of Statistics 52). Values of one product may be multiplied
    across independent runs.
    """
    array = np.asarray(values, dtype=np.float64) - null
    if len(array) < FEWEST_REPLICATES:
        return 1.0
    return math.exp(min(_log_e(_t_of(array), len(array)), 700.0))


def _t_of(array: np.ndarray) -> float:
    error = _standard_error(array)
    return float(array.mean()) / max(error, 1e-12)


def _standard_error(array: np.ndarray) -> float:
    return float(array.std(ddof=1)) / math.sqrt(len(array))


def _log_e(t: float, n: int) -> float:
    """Log of 2 · BF · P(shift > 0 | data); BF as in Gönen et al. 2005, American Statistician 59."""
    from scipy.special import stdtr

    prior = 1 + n * _EFFECT_SD**2
    free, squared = n - 1, t * t
    shrunk = free + squared / prior
    log_bf = 0.5 * (n * math.log((free + squared) / shrunk) - math.log(prior))
    posterior_t = t * math.sqrt((1 - 1 / prior) * n / shrunk)
    return math.log(2) + log_bf + math.log(max(float(stdtr(n, posterior_t)), 1e-300))


@functools.cache
def critical_t(n: int, error: float) -> float:
    """The t beyond which `n` values give an e-value of 1/error; infinite if none does."""
    from scipy.optimize import brentq

    goal = -math.log(error)
    if _log_e(1e6, n) < goal:
        return math.inf
    return float(brentq(lambda t: _log_e(t, n) - goal, 0.0, 1e6))


def bounds(values: Sequence[float], errors: Errors, *, once: bool) -> tuple[float, float]:
    """Lower and upper bound of the mean, wrong with errors.alarm and errors.miss at most.

    Those values of the mean that `e_value` does not refute, so they hold after any number of
    looks; with `once`, Student's interval, which holds for one look at a number set beforehand.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < FEWEST_REPLICATES:
        return -math.inf, math.inf
    error, mean = _standard_error(array), float(array.mean())
    low, high = (_width(len(array), e, once=once) for e in (errors.alarm, errors.miss))
    return mean - low * error, mean + high * error


def _width(n: int, error: float, *, once: bool) -> float:
    return student_t(1 - error, n - 1) if once else critical_t(n, error)


def student_t(share: float, freedom: float) -> float:
    """The quantile of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def change_of(
    values: Sequence[float], anchor: Anchor, limit: float, errors: Errors, *, once: bool = False
) -> Change:
    """Compare today's log ratios with the anchor. `limit` is the largest slowdown allowed.

    Where the anchor is uncertain, half of each error is spent on it and half on today's values.
    Fewer than three values give an infinite interval.
    """
    split = Errors(errors.alarm / 2, errors.miss / 2) if anchor.error else errors
    low, high = bounds(values, split, once=once)
    below = anchor.level + _margin(anchor, split.alarm)
    above = anchor.level - _margin(anchor, split.miss)
    estimate = float(np.mean(values)) - anchor.level
    return Change(
        ratio=math.exp(estimate),
        low=math.exp(low - below),
        high=_exp(high - above),
        evidence=e_value(values, math.log1p(limit) + below),
        visible=visible_slowdown(values, anchor, limit, errors.alarm, len(values)),
    )


def ratio_of(values: Sequence[float], error: float = 0.025) -> tuple[float, float, float]:
    """Low end, estimate and high end of a ratio from its logs, each end wrong with `error`."""
    low, high = bounds(values, Errors(error, error), once=True)
    return math.exp(low), math.exp(float(np.mean(values))), _exp(high)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf  # noqa: PLR2004 - the range of a float


def _margin(anchor: Anchor, error: float) -> float:
    return student_t(1 - error, anchor.freedom) * anchor.error if anchor.error else 0.0


def visible_slowdown(
    values: Sequence[float], anchor: Anchor, limit: float, alarm: float, n: int
) -> float:
    """Smallest slowdown that `n` replicates of the spread of `values` show in 4 of 5 measurements.

    The limit, the width of the interval below the estimate, and the scatter of the estimate.
    """
    if min(n, len(values)) < FEWEST_REPLICATES:
        return math.inf
    today = alarm / 2 if anchor.error else alarm
    deviation = _typical_deviation(values)
    widths = critical_t(n, today) + student_t(POWER, n - 1)
    distance = widths * deviation / math.sqrt(n) + _margin(anchor, today)
    return _exp(math.log1p(limit) + distance) - 1


def _typical_deviation(values: Sequence[float]) -> float:
    """The standard deviation, raised so that it is too small in two of five only.

    That of few is else mostly too small, and a screening that ends early has a small one.
    """
    from scipy.special import gammaincinv

    half = (len(values) - 1) / 2
    return float(np.std(values, ddof=1)) * math.sqrt(half / float(gammaincinv(half, 0.4)))


def decides(values: Sequence[float], anchor: Anchor, limit: float, errors: Errors, n: int) -> bool:
    """Tell if `n` replicates with the mean and spread of `values` would decide."""
    array = np.asarray(values, dtype=np.float64)
    distance = float(array.mean()) - anchor.level - math.log1p(limit)
    share = 0.5 if anchor.error else 1.0
    error = share * (errors.alarm if distance > 0 else errors.miss)
    room = abs(distance) - _margin(anchor, error)
    width = critical_t(n, error) * float(array.std(ddof=1)) if room > 0 else math.inf
    return width < room * math.sqrt(n)


def replicates_to_decide(
    values: Sequence[float], anchor: Anchor, limit: float, errors: Errors
) -> int | None:
    """Count the replicates that would decide with this mean and spread; None if too many."""
    n = FEWEST_REPLICATES
    if len(values) < n or not decides(values, anchor, limit, errors, _MOST_REPLICATES):
        return None
    while not decides(values, anchor, limit, errors, n):
        n += max(1, n // 8)
    return n


def quantile_interval(
    samples: Sequence[float], q: float, error: float = 0.01
) -> tuple[float, float, float] | None:
    """Lower end, estimate and upper end of a quantile from order statistics; None if too few.

    Each end is wrong with `error` at most, whatever the distribution (David and Nagaraja, Order
    Statistics, 7.1), for independent samples; calls of one instantiation are not independent of
    its placement, so of the p99 of calls it tells for the instantiations measured.
    """
    from scipy.special import bdtr

    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    below = bdtr(np.arange(n), n, q)  # chance that at most k samples lie below the quantile
    high = int(np.searchsorted(below, 1 - error))
    low = int(np.searchsorted(below, error)) - 1
    if high >= n or low < 0:
        return None
    return float(ordered[low]), quantile(samples, q), float(ordered[high])
