"""How the outputs of a model are judged, by their kind: another kind is one more record."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from enginegate.accuracy.bootstrap import Values
from enginegate.accuracy.deltas import Array, Deltas, check_sane, compare, cosines_of
from enginegate.accuracy.multi import (
    WorstToken,
    best_matches,
    by_text,
    check_vectors,
    compare_tokens,
    worst_token,
)
from enginegate.accuracy.retrieval import (
    Names,
    Retrieval,
    Vectors,
    compare_rankings,
    similarities,
)
from enginegate.accuracy.scores import (
    by_query,
    check_scores,
    compare_scores,
    rank_documents,
    score_cosines,
)
from enginegate.accuracy.sparse import (
    Terms,
    check_sparse,
    compare_sparse,
    compare_terms,
    products,
)
from enginegate.accuracy.views import View
from enginegate.models import OutputKind, Pairs, Searched, Workload, token_counts


@dataclass(frozen=True)
class Outputs:
    """What is judged of the outputs of a kind. A row is a text, or the documents of a query.

    Attributes:
        compare: deltas of an engine's outputs to the reference's; raises EmbeddingError.
        similar: similarities of what is searched for and searched in.
        sane: raises EmbeddingError for outputs that cannot be compared, with their owner.
        cosines: of each row's two outputs.
        ranked: an engine's similarities against the reference's.
        names: texts of the rows, and of what is ordered by them.
        tokens: of each row.
        terms: what is left of the largest terms; None of what has no terms.
        worst_token: the token whose vector is furthest off; None of what has none for each.
    """

    compare: Callable[[Array, Array], Deltas]
    similar: Callable[[Vectors], Values]
    sane: Callable[[Array, str], None]
    cosines: Callable[[Array, Array], Values]
    ranked: Callable[[Values, Values, Names], Retrieval]
    names: Names
    tokens: tuple[int, ...]
    terms: Callable[[Array, Array], Terms | None] = lambda _found, _expected: None
    worst_token: Callable[[Array, Array], WorstToken | None] = lambda _found, _expected: None

    @property
    def whole(self) -> View:
        """The outputs as they are."""
        return View("", self.compare, self.similar, lambda limits: limits)


def outputs_of(workload: Workload) -> Outputs:
    """How the outputs for a workload are judged."""
    tokens = token_counts(workload.evaluation, workload.mask)
    if workload.pairs:
        return _scores(workload.pairs, tokens)
    dense = Outputs(
        compare=compare,
        similar=similarities,
        sane=check_sane,
        cosines=cosines_of,
        ranked=compare_rankings,
        names=Names(workload.texts),
        tokens=tokens,
    )
    if workload.searched:
        return _multi(dense, workload.searched)
    return _sparse(dense) if workload.kind == OutputKind.SPARSE else dense


def _multi(dense: Outputs, rows: Searched) -> Outputs:
    return replace(
        dense,
        compare=compare_tokens,
        similar=best_matches,
        sane=check_vectors,
        cosines=by_text,
        names=Names(rows.texts),
        tokens=tuple(map(int, np.reshape(dense.tokens, (-1, 2)).max(axis=1))),
        worst_token=lambda found, expected: worst_token(found, expected, rows),
    )


def _sparse(dense: Outputs) -> Outputs:
    return replace(
        dense, compare=compare_sparse, similar=products, sane=check_sparse, terms=compare_terms
    )


def _scores(pairs: Pairs, tokens: tuple[int, ...]) -> Outputs:
    count = pairs.per_query
    documents = tuple(document for _, document in pairs.rows)

    def cosines(found: Array, expected: Array) -> Values:
        return score_cosines(by_query(found, count), by_query(expected, count))

    return Outputs(
        compare=lambda found, expected: compare_scores(found, expected, count),
        similar=lambda vectors: by_query(vectors.queries, count),
        sane=check_scores,
        cosines=cosines,
        ranked=rank_documents,
        names=Names(pairs.queries, documents, count),
        tokens=tuple(map(int, np.reshape(tokens, (-1, count)).max(axis=1))),
    )
