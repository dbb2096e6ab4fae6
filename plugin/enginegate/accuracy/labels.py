"""A user's own judgements, kept or lost: NDCG@10 of relevances, Spearman of labelled pairs."""

from dataclasses import dataclass

import numpy as np

from enginegate.accuracy.bootstrap import Interval, Values, mean_interval, paired_interval
from enginegate.accuracy.limits import Limits

DEPTH = 10


@dataclass(frozen=True)
class NdcgChange:
    """Mean NDCG@10 over queries.

    Attributes:
        reference: with the reference's vectors.
        candidate: with the engine's.
        change: candidate less reference, per query, with its interval over queries.
    """

    reference: float
    candidate: float
    change: Interval

    @property
    def words(self) -> str:
        """Both means, and the change."""
        return f"NDCG@10 {self.reference:.4g} -> {self.candidate:.4g}, change {self.change.words}"


def ndcg(similar: Values, gains: Values) -> Values:
    """NDCG@10 of each query, from similarities and gains [queries, documents]; no row all zero.

    Linear gains and a discount of log2(1 + rank) (Järvelin and Kekäläinen 2002, ACM Transactions on
    Information Systems 20), as in trec_eval.
    """
    order = np.argsort(-similar, axis=1, kind="stable")
    ideal = -np.sort(-gains, axis=1)
    share: Values = _discounted(np.take_along_axis(gains, order, axis=1)) / _discounted(ideal)
    return share


def _discounted(ranked: Values) -> Values:
    top = ranked[:, :DEPTH]
    total: Values = (top / np.log2(np.arange(2, top.shape[1] + 2))).sum(axis=1)
    return total


def compare_ndcg(found: Values, expected: Values, gains: Values) -> NdcgChange:
    """The change from the reference's similarities to an engine's; all [queries, documents].

    Queries without any relevant document say nothing and are left out; one at least has some.
    """
    judged = gains.any(axis=1)
    now, then = (ndcg(similar[judged], gains[judged]) for similar in (found, expected))
    return NdcgChange(float(then.mean()), float(now.mean()), mean_interval(now - then))


@dataclass(frozen=True)
class Sts:
    """Spearman's correlation of similarities with labels.

    Attributes:
        reference: with the reference's vectors.
        candidate: with the engine's.
        retained: candidate / reference; None where the reference is not clearly above 0.
        low, high: ends of its interval over pairs.
        pairs: how many.
    """

    reference: float
    candidate: float
    retained: float | None
    low: float | None
    high: float | None
    pairs: int

    @property
    def words(self) -> str:
        """Both correlations, and what is retained."""
        both = f"Spearman {self.reference:.4g} -> {self.candidate:.4g} on {self.pairs} pairs"
        if self.retained is None or self.low is None or self.high is None:
            return f"{both}; the reference has none to retain"
        return f"{both}, retained {Interval(self.retained, self.low, self.high).words}"


def compare_pairs(found: Values, expected: Values, scores: Values) -> Sts:
    """Cosines of pairs by an engine and by the reference, and their labels; all [pairs]."""
    then = paired_interval(spearman, expected, scores)
    now = float(spearman(found, scores))
    if then.low <= 0:
        return Sts(then.value, now, None, None, None, len(scores))
    kept = paired_interval(_retained, found, expected, scores)
    return Sts(then.value, now, kept.value, kept.low, kept.high, len(scores))


def _retained(found: Values, expected: Values, scores: Values, axis: int = -1) -> Values:
    """Ratio of both correlations; 1 for a resample without any, which says nothing."""
    now, then = spearman(found, scores, axis), spearman(expected, scores, axis)
    share: Values = np.where(then != 0, now / np.where(then != 0, then, 1), 1)
    return share


def spearman(a: Values, b: Values, axis: int = -1) -> Values:
    """Pearson's correlation of the ranks along the last axis; 0 where one side is all ties."""
    from scipy import stats

    a, b = (stats.rankdata(x, axis=axis) for x in (a, b))
    a, b = (x - x.mean(axis=axis, keepdims=True) for x in (a, b))
    power = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    shares: Values = (a * b).sum(axis=axis) / np.where(power > 0, power, 1)
    return shares


def sts_violations(sts: Sts, limits: Limits) -> tuple[str, ...]:
    """Say if the whole interval shows that too little is retained."""
    if sts.high is None or sts.high >= limits.sts_retained:
        return ()
    return (f"sts_retained < {limits.sts_retained:g}: {sts.words}",)
