"""Does a search still find the same? Rankings by an engine's embeddings against the reference's.

Similarities are cosines, computed in float64 from the float32 vectors: whatever differs is due to
the vectors, not to the scoring.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enginegate.accuracy.bootstrap import Interval, Values, mean_interval
from enginegate.accuracy.deltas import Array
from enginegate.accuracy.labels import NdcgChange, spearman
from enginegate.accuracy.limits import Limits

NEAR = 10  # neighbours that a user looks at
_SAME = 1e-6  # float32 vectors cannot tell cosines apart that are nearer
_TIED = 1e-12  # float64 cosines of equal vectors
_MOST_LISTED = 10
_NEIGHBOURS = 3  # told of each of the worst texts
_RANKED = ("recall_at_1", "recall_at_10", "spearman", "kendall")


@dataclass(frozen=True)
class Vectors:
    """Embeddings of what is searched for and searched in.

    Attributes:
        queries: [queries, dim].
        documents: [documents, dim]; None where every query is searched among all others.
    """

    queries: Array
    documents: Array | None = None


@dataclass(frozen=True)
class Names:
    """The texts of `Vectors`, in order; with `per_query`, each query has documents of its own."""

    queries: Sequence[str]
    documents: Sequence[str] | None = None
    per_query: int = 0

    def document(self, query: int, column: int) -> str:
        """The text in a column of that query's similarities."""
        if self.documents is not None:
            return self.documents[query * self.per_query + column]
        return self.queries[column + (column >= query)]


@dataclass(frozen=True)
class FalseNeighbour:
    """A query whose nearest text is another one than the reference's."""

    query: str
    expected: str
    found: str


@dataclass(frozen=True)
class Retrieval:
    """How far rankings by two sets of embeddings agree.

    Attributes:
        recall_at_1, recall_at_10: share of an engine's nearest texts that are among the
            reference's, mean over queries.
        spearman, kendall: rank correlation of a query's similarities, mean over queries.
        spearman_worst: the smallest of a query.
        worst_query: that query's text.
        false_ties: neighbours in the engine's rankings with equal similarities that the reference
            tells apart.
        false_neighbours: up to ten, the gravest first.
        queries, documents: how many of each; documents are one fewer than queries where each
            query is searched among the others.
        ndcg_at_10: None without relevance.
    """

    recall_at_1: Interval
    recall_at_10: Interval
    spearman: Interval
    kendall: Interval
    spearman_worst: float
    worst_query: str
    false_ties: int
    false_neighbours: tuple[FalseNeighbour, ...]
    queries: int
    documents: int
    ndcg_at_10: NdcgChange | None = None


@dataclass(frozen=True)
class WorstText:
    """A text whose embedding is far off.

    Attributes:
        index: among the evaluation texts.
        text: as it was before it was cut.
        tokens: that the model saw, padding not counted.
        cosine: of its two vectors.
        neighbours_before: the three nearest other texts by the reference, nearest first.
        neighbours_after: the same by the engine.
    """

    index: int
    text: str
    tokens: int
    cosine: float
    neighbours_before: tuple[str, ...]
    neighbours_after: tuple[str, ...]


def similarities(vectors: Vectors) -> Values:
    """Cosines [queries, documents] in float64; without documents, of each to all others in order.

    The similarity of a text to itself is left out.
    """
    return cosines_between(vectors, lambda documents: documents)


def cosines_between(vectors: Vectors, show: Callable[[Array], Array]) -> Values:
    """The same, of queries as they are and documents as `show` shows them."""
    queries, documents = vectors.queries, vectors.documents
    if documents is not None:
        return _unit(queries) @ _unit(show(documents)).T
    count = len(queries)
    others = ~np.eye(count, dtype=bool)
    return (_unit(queries) @ _unit(show(queries)).T)[others].reshape(count, count - 1)


def _unit(vectors: Array) -> Values:
    wide = vectors.astype(np.float64)
    unit: Values = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def nearest(similar: Values, count: int) -> npt.NDArray[np.intp]:
    """Columns of the most similar, nearest first: [queries, count]; the first of equal ones."""
    return np.argsort(-similar, axis=1, kind="stable")[:, :count]


def compare_rankings(found: Values, expected: Values, names: Names) -> Retrieval:
    """Agreement of an engine's similarities with the reference's, both [queries, documents]."""
    correlations = _spearman(found, expected)
    return Retrieval(
        recall_at_1=mean_interval(recall(found, expected, 1)),
        recall_at_10=mean_interval(recall(found, expected, NEAR)),
        spearman=mean_interval(correlations),
        kendall=mean_interval(_kendall(found, expected)),
        spearman_worst=float(correlations.min()),
        worst_query=names.queries[int(correlations.argmin())],
        false_ties=count_false_ties(found, expected),
        false_neighbours=_false_neighbours(found, expected, names),
        queries=found.shape[0],
        documents=found.shape[1],
    )


def recall(found: Values, expected: Values, count: int) -> Values:
    """Share of the `count` nearest that are among the reference's nearest: [queries].

    A text that the reference cannot tell from its last one counts as among them.
    """
    count = min(count, found.shape[1])
    last = np.sort(expected, axis=1)[:, -count, None]
    chosen = np.take_along_axis(expected, nearest(found, count), axis=1)
    share: Values = (chosen >= last - _SAME).mean(axis=1)
    return share


def _spearman(a: Values, b: Values) -> Values:
    """Spearman's correlation of two rows: [rows]; 0 where one is all ties, 1 where both are."""
    return np.where(_both_tied(a, b), 1.0, spearman(a, b))


def _kendall(a: Values, b: Values) -> Values:
    """Kendall's tau-b of two rows: [rows]; 0 where one row is all ties, 1 where both are."""
    from scipy import stats

    tau = stats.kendalltau(a, b, axis=1).statistic
    return np.where(np.isnan(tau), _both_tied(a, b), tau)


def _both_tied(a: Values, b: Values) -> npt.NDArray[np.bool_]:
    tied: npt.NDArray[np.bool_] = (np.ptp(a, axis=1) == 0) & (np.ptp(b, axis=1) == 0)
    return tied


def count_false_ties(found: Values, expected: Values) -> int:
    """Neighbours in a query's ranking that are tied, and are not in the reference."""
    order = np.argsort(found, axis=1)
    gaps, true_gaps = (
        np.abs(np.diff(np.take_along_axis(similar, order, axis=1), axis=1))
        for similar in (found, expected)
    )
    return int(((gaps <= _TIED) & (true_gaps > _SAME)).sum())


def _false_neighbours(found: Values, expected: Values, names: Names) -> tuple[FalseNeighbour, ...]:
    """Queries with another nearest text, by how much nearer the reference's is."""
    rows = np.arange(len(found))
    now, then = nearest(found, 1)[:, 0], nearest(expected, 1)[:, 0]
    loss = expected[rows, then] - expected[rows, now]
    gravest = [int(row) for row in np.argsort(-loss)[:_MOST_LISTED] if loss[row] > _SAME]
    return tuple(
        FalseNeighbour(
            names.queries[row],
            names.document(row, int(then[row])),
            names.document(row, int(now[row])),
        )
        for row in gravest
    )


def worst_texts(
    cosines: Values, found: Values, expected: Values, names: Names, tokens: Sequence[int]
) -> tuple[WorstText, ...]:
    """Up to ten texts with the smallest cosines [texts], smallest first.

    `found` and `expected` are the engine's and the reference's similarities [texts, documents].
    """
    before, after = (nearest(similar, _NEIGHBOURS) for similar in (expected, found))
    return tuple(
        WorstText(
            index=row,
            text=names.queries[row],
            tokens=tokens[row],
            cosine=float(cosines[row]),
            neighbours_before=tuple(names.document(row, int(column)) for column in before[row]),
            neighbours_after=tuple(names.document(row, int(column)) for column in after[row]),
        )
        for row in map(int, np.argsort(cosines, kind="stable")[:_MOST_LISTED])
    )


def rank_violations(retrieval: Retrieval, limits: Limits) -> tuple[str, ...]:
    """Every limit that rankings break, in words: by a whole interval, or by a single text."""
    broken = [
        f"{name} {getattr(retrieval, name).words} < {getattr(limits, name):g}"
        for name in _RANKED
        if getattr(retrieval, name).high < getattr(limits, name)
    ]
    if retrieval.spearman_worst < limits.spearman_worst:
        worst = f"{retrieval.spearman_worst:.4g} < {limits.spearman_worst:g}"
        broken.append(f'spearman_worst {worst} of the text "{shortened(retrieval.worst_query)}"')
    ndcg = retrieval.ndcg_at_10
    if ndcg and ndcg.change.high < -limits.ndcg_loss:
        broken.append(f"ndcg_loss > {limits.ndcg_loss:g}: {ndcg.words}")
    return tuple(broken)


def unsure(retrieval: Retrieval, limits: Limits) -> tuple[str, ...]:
    """Every limit that the figure misses and its interval contains: more texts would decide."""
    held = [
        f"{name} {getattr(retrieval, name).words} contains the limit of {getattr(limits, name):g}"
        for name in _RANKED
        if getattr(retrieval, name).value < getattr(limits, name) <= getattr(retrieval, name).high
    ]
    change = retrieval.ndcg_at_10.change if retrieval.ndcg_at_10 else None
    if change and change.value < -limits.ndcg_loss <= change.high:
        held.append(f"ndcg_loss: {change.words} contains the limit of {-limits.ndcg_loss:g}")
    return tuple(held)


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, for a line of a report."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
