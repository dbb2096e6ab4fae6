"""Sparse vectors: a weight of 0 or more for each word of a vocabulary, and its largest terms."""

from dataclasses import dataclass

import numpy as np

from enginegate.accuracy.bootstrap import Interval, Values, mean_interval
from enginegate.accuracy.deltas import Array, Deltas, check_sane, compare
from enginegate.accuracy.limits import Limits
from enginegate.accuracy.retrieval import Vectors
from enginegate.errors import EmbeddingError

LARGEST = 32  # terms of a text that decide what finds it; SPLADE keeps some 100 to 300


@dataclass(frozen=True)
class Terms:
    """What is left of the terms of texts.

    Attributes:
        kept: share of the reference's largest terms that are among the engine's, mean over texts.
        active: terms of a text above 0 by the engine, mean over texts.
        active_reference: the same by the reference.
    """

    kept: Interval
    active: float
    active_reference: float

    @property
    def active_change(self) -> float:
        """How far the number of terms is from the reference's, as a share of that."""
        return abs(self.active / self.active_reference - 1)

    @property
    def words(self) -> str:
        """All of it in a line."""
        counts = f"{self.active_reference:.1f} -> {self.active:.1f} terms a text"
        return f"{counts}, of the {LARGEST} largest kept {self.kept.words}"


def check_sparse(vectors: Array, owner: str) -> None:
    """Raise EmbeddingError for sparse vectors that are not sane as embeddings, or negative."""
    check_sane(vectors, owner)
    if bad := np.flatnonzero((vectors < 0).any(axis=1)).tolist():
        raise EmbeddingError(f"{owner} gave negative weights for {len(bad)} texts, first: {bad[0]}")


def compare_sparse(candidate: Array, reference: Array) -> Deltas:
    """Deltas of sparse vectors, both [texts, vocabulary]; EmbeddingError as `check_sparse`."""
    check_sparse(reference, "the reference")
    check_sparse(candidate, "the engine")
    return compare(candidate, reference)


def products(vectors: Vectors) -> Values:
    """Dot products [queries, documents]; without documents, of each to all others in order."""
    queries = vectors.queries.astype(np.float64)
    if vectors.documents is not None:
        return queries @ vectors.documents.astype(np.float64).T
    count = len(queries)
    others = ~np.eye(count, dtype=bool)
    return (queries @ queries.T)[others].reshape(count, count - 1)


def compare_terms(found: Array, expected: Array) -> Terms:
    """What is left of the largest terms, of sparse vectors [texts, vocabulary]."""
    shares = [_kept(*rows) for rows in zip(found, expected, strict=True)]
    active, before = ((vectors > 0).sum(axis=1).mean() for vectors in (found, expected))
    return Terms(mean_interval(np.array(shares)), float(active), float(before))


def _kept(found: Array, expected: Array) -> float:
    """Of one text; a term as large as the reference's last one counts as among its largest."""
    count = min(LARGEST, int((expected > 0).sum()))
    last = np.sort(expected)[-count]
    chosen = np.argsort(-found, kind="stable")[:count]
    return float((expected[chosen] >= last).mean())


def term_violations(terms: Terms, limits: Limits) -> tuple[str, ...]:
    """Every limit on terms that is broken, in words; that on the largest by its whole interval."""
    said = []
    if terms.kept.high < limits.terms_kept:
        said.append(f"terms_kept {terms.kept.words} < {limits.terms_kept:g}")
    if terms.active_change > limits.active_change:
        counts = f"{terms.active_reference:.1f} -> {terms.active:.1f} terms a text"
        said.append(f"active_change {terms.active_change:.3g} > {limits.active_change:g}: {counts}")
    return tuple(said)
