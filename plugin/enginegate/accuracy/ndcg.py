"""NDCG@10 of a user's own relevance judgements, with the reference's vectors and an engine's."""

from dataclasses import dataclass

import numpy as np

from enginegate.accuracy.bootstrap import Interval, Values, mean_interval

_DEPTH = 10


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
    top = ranked[:, :_DEPTH]
    total: Values = (top / np.log2(np.arange(2, top.shape[1] + 2))).sum(axis=1)
    return total


def compare_ndcg(found: Values, expected: Values, gains: Values) -> NdcgChange:
    """The change from the reference's similarities to an engine's; all [queries, documents].

    Queries without any relevant document say nothing and are left out; one at least has some.
    """
    judged = gains.any(axis=1)
    now, then = (ndcg(similar[judged], gains[judged]) for similar in (found, expected))
    return NdcgChange(float(then.mean()), float(now.mean()), mean_interval(now - then))
