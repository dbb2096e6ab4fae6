"""Scores of pairs: how each query's documents are ordered, by an engine and by the reference."""

from dataclasses import replace

import numpy as np

from enginegate.accuracy.bootstrap import Values
from enginegate.accuracy.deltas import Array, Deltas
from enginegate.accuracy.labels import DEPTH, compare_ndcg
from enginegate.accuracy.retrieval import Names, Retrieval, compare_rankings
from enginegate.errors import EmbeddingError

_SIGMOID_NEAR = 1e-4  # of scores from 0 to 1; two runtimes in fp32 agree to 1e-6


def by_query(scores: Array, count: int) -> Values:
    """Scores [pairs, 1], `count` of each query, as float64 [queries, documents]."""
    return scores.astype(np.float64).reshape(-1, count)


def check_scores(scores: Array, owner: str) -> None:
    """Raise EmbeddingError unless scores are [pairs, 1], finite, and not all the same."""
    if scores.shape[1:] != (1,):
        raise EmbeddingError(
            f"{owner} gave {scores.shape[1]} numbers for a pair, where one score is expected"
        )
    if bad := np.flatnonzero(~np.isfinite(scores)).tolist():
        raise EmbeddingError(f"{owner} gave NaN or infinity for {len(bad)} pairs, first: {bad[0]}")
    if (scores == scores[0]).all():
        raise EmbeddingError(f"{owner} gave the same score for all {len(scores)} pairs")


def compare_scores(candidate: Array, reference: Array, count: int) -> Deltas:
    """Deltas of scores [pairs, 1], `count` of each query; in float64.

    The scale is the range of the reference's scores; cosines and gain are of scores less the mean
    of all the reference's. Raises EmbeddingError if either is not sane or their shapes differ.
    """
    check_scores(reference, "the reference")
    check_scores(candidate, "the engine")
    if candidate.shape != reference.shape:
        raise EmbeddingError(
            f"the engine gave {len(candidate)} scores, the reference {len(reference)}"
        )
    found, expected = by_query(candidate, count), by_query(reference, count)
    difference, cosines = np.abs(found - expected), score_cosines(found, expected)
    now, then = found - expected.mean(), expected - expected.mean()
    return Deltas(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        scale=float(np.ptp(expected)),
        cosine_worst=float(cosines.min()),
        cosine_p1=float(np.quantile(cosines, 0.01)),
        gain=float((now * then).sum() / (then * then).sum()),
        worst_text=int(cosines.argmin()),
    )


def score_cosines(found: Values, expected: Values) -> Values:
    """Cosine of each query's scores, less the mean of all the reference's; [queries, documents].

    1 where all of them are that mean on both sides, 0 where they are on one.
    """
    now, then = found - expected.mean(), expected - expected.mean()
    lengths = np.linalg.norm(now, axis=1), np.linalg.norm(then, axis=1)
    product = lengths[0] * lengths[1]
    alike = (now * then).sum(axis=1) / np.where(product > 0, product, 1)
    return np.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, alike)


def score_cause(reference: Array, truth: Array) -> str:
    """Why scores [pairs, 1] are not the model's: a sigmoid at the end, if that is it."""
    if np.abs(_sigmoid(reference) - truth).max() <= _SIGMOID_NEAR:
        return "its scores are the model's without the sigmoid at its end"
    if np.abs(_sigmoid(truth) - reference).max() <= _SIGMOID_NEAR:
        return "its scores have a sigmoid at the end, which the model's have not"
    return "no other cause was sought than a sigmoid at the end"


def _sigmoid(scores: Array) -> Values:
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


def rank_documents(found: Values, expected: Values, names: Names) -> Retrieval:
    """Agreement of the orders of each query's documents, both scores [queries, documents].

    NDCG@10 takes for a document's relevance how far it is from the end of the reference's ten best.
    """
    places = (-expected).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    gains = np.clip(DEPTH - places, 0, None).astype(np.float64)
    ranked = compare_rankings(found, expected, names)
    return replace(ranked, ndcg_at_10=compare_ndcg(found, expected, gains))
