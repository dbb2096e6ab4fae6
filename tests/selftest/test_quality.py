"""Rankings, intervals and worst texts on vectors with known answers, and with planted faults."""

import numpy as np
import pytest
from scipy import stats

from enginegate.accuracy.bootstrap import mean_interval, paired_interval
from enginegate.accuracy.deltas import compare
from enginegate.accuracy.judge import EmbeddingJudge, judge_accuracy
from enginegate.accuracy.labels import compare_ndcg, ndcg
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.accuracy.retrieval import (
    FalseNeighbour,
    Names,
    Vectors,
    compare_rankings,
    count_false_ties,
    rank_violations,
    recall,
    similarities,
    unsure,
)
from enginegate.models.workload import Workload
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

LIMITS = DEFAULT_LIMITS[Precision.INT8]
NAMES = Names([f"text {number}" for number in range(256)])


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(256, 48)).astype(np.float32)


def noisy(reference, scale, seed=1):
    noise = np.random.default_rng(seed).normal(scale=scale, size=reference.shape)
    return (reference + noise).astype(np.float32)


def rankings(candidate, reference):
    found, expected = similarities(Vectors(candidate)), similarities(Vectors(reference))
    return compare_rankings(found, expected, NAMES)


def test_the_same_vectors_rank_alike_whatever_their_length(reference):
    found = rankings(reference * np.float32(3), reference)
    for figure in (found.recall_at_1, found.recall_at_10):
        assert (figure.value, figure.low, figure.high) == (1, 1, 1)
    assert found.spearman.value == pytest.approx(1)
    assert found.kendall.value == pytest.approx(1)
    assert found.false_ties == 0
    assert found.false_neighbours == ()
    assert (found.queries, found.documents) == (256, 255)
    assert rank_violations(found, DEFAULT_LIMITS[Precision.FP32]) == ()


def test_rank_correlations_are_scipys(reference):
    found, expected = noisy(reference, 0.5)[:6], reference[:6]
    a, b = similarities(Vectors(found)), similarities(Vectors(expected))
    agreement = compare_rankings(a, b, NAMES)
    rhos = [stats.spearmanr(*rows).statistic for rows in zip(a, b, strict=True)]
    assert agreement.spearman.value == pytest.approx(np.mean(rhos))
    assert agreement.spearman_worst == pytest.approx(min(rhos))
    assert agreement.worst_query == f"text {int(np.argmin(rhos))}"


def test_a_search_among_documents_of_their_own(reference):
    queries, documents = reference[:4], reference[4:]
    similar = similarities(Vectors(queries, documents))
    assert similar.shape == (4, 252)
    assert similar.dtype == np.float64
    names = Names(["a", "b", "c", "d"], [f"document {n}" for n in range(252)])
    swapped = documents.copy()
    best = int(similar[2].argmax())
    other = int(np.argsort(similar[2])[100])
    swapped[[best, other]] = swapped[[other, best]]
    found = compare_rankings(similarities(Vectors(queries, swapped)), similar, names)
    expected = FalseNeighbour("c", f"document {best}", f"document {other}")
    assert expected in found.false_neighbours


def test_recall_counts_what_is_kept():
    expected = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]])
    found = np.array([[0.8, 0.9, 0.7, 0.6], [0.1, 0.2, 0.9, 0.3]])
    assert recall(found, expected, 1).tolist() == [0, 0]
    assert recall(found, expected, 2).tolist() == [1, 0]
    assert recall(found, expected, 10).tolist() == [1, 1]


def test_what_the_reference_cannot_tell_apart_is_no_loss():
    expected = np.array([[0.9, 0.9 - 1e-8, 0.1]])
    assert recall(np.array([[0.8, 0.9, 0.1]]), expected, 1).tolist() == [1]


def test_two_texts_made_equal_are_false_ties(reference):
    merged = reference.copy()
    merged[7] = merged[8]
    assert rankings(merged, reference).false_ties > 200
    rounded = similarities(Vectors(reference)).round(2)
    assert count_false_ties(rounded, similarities(Vectors(reference))) > 1000


def test_one_dead_row_is_an_outlier_with_its_text(reference):
    dead = reference.copy()
    dead[41] = np.random.default_rng(5).normal(size=48)
    found = rankings(dead, reference)
    assert found.recall_at_10.value > 0.9
    (said,) = rank_violations(found, LIMITS)
    assert said.startswith("spearman_worst")
    assert '"text 41"' in said


def test_a_broad_loss_breaks_the_limit_with_its_whole_interval(reference):
    found = rankings(noisy(reference, 0.3), reference)
    said = rank_violations(found, LIMITS)
    assert any(text.startswith("recall_at_10 0.") for text in said)
    verdict = judge_accuracy(
        compare(noisy(reference, 0.3), reference), LIMITS, LIMITS, found
    ).verdict
    assert verdict is Verdict.FAIL


def test_an_interval_that_contains_the_limit_decides_nothing(reference):
    candidate = noisy(reference, 0.075)
    found = rankings(candidate, reference)
    assert found.recall_at_10.value < 0.9 <= found.recall_at_10.high
    assert not any(text.startswith("recall_at_10") for text in rank_violations(found, LIMITS))
    assert any("recall_at_10" in text and "contains" in text for text in unsure(found, LIMITS))
    judgement = judge_accuracy(compare(candidate, reference), LIMITS, LIMITS, found)
    assert judgement.verdict is not Verdict.FAIL
    assert any("contains the limit" in reason for reason in judgement.reasons)


def test_the_interval_keeps_its_promise_on_skewed_values():
    """99 % intervals of the mean of values that pile up at 1 hold the truth about as often."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        values = 1 - rng.binomial(10, 0.03, size=256) / 10
        interval = mean_interval(values)
        held += interval.low <= 0.97 <= interval.high
    assert held >= 95


def test_intervals_are_the_same_every_time_and_hold_their_value(reference):
    values = np.random.default_rng(2).normal(size=50)
    first = mean_interval(values)
    assert first == mean_interval(values.copy())
    assert first.low < first.value < first.high
    ratio = paired_interval(lambda a, b, axis: (a / b).mean(axis=axis), values, values)
    assert (ratio.low, ratio.value, ratio.high) == (1, 1, 1)


def test_values_that_differ_by_rounding_only_have_an_interval_without_width():
    rng = np.random.default_rng(0)
    for _ in range(10):
        interval = mean_interval(1 - 2.2e-16 * rng.integers(0, 3, size=256).astype(np.float64))
        assert interval.low == interval.value == interval.high
    one_off = mean_interval(np.append(np.ones(255), 0.9))
    assert one_off.low < one_off.value < one_off.high <= 1


def test_ndcg_is_that_of_scikit_learn():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(4)
    similar, gains = rng.normal(size=(20, 50)), rng.integers(0, 4, size=(20, 50)).astype(float)
    expected = [ndcg_score(gains[[n]], similar[[n]], k=10) for n in range(20)]
    assert ndcg(similar, gains) == pytest.approx(expected)


def test_the_change_of_ndcg_leaves_out_queries_without_relevance():
    gains = np.zeros((3, 12))
    gains[0, 0] = gains[1, 1] = 1
    expected = gains.copy()
    found = expected.copy()
    found[1] = -found[1]  # the relevant one is last now
    change = compare_ndcg(found, expected, gains)
    assert change.reference == 1
    assert change.candidate == pytest.approx(0.5, abs=0.2)
    assert change.change.value == pytest.approx(change.candidate - 1)


def workload_of(texts, seq=8):
    rng = np.random.default_rng(0)
    mask = (np.arange(seq) < rng.integers(2, seq + 1, size=(len(texts), 1))).astype(np.int64)
    batch = {"input_ids": mask * 5, "attention_mask": mask}
    return Workload("texts", tuple(texts), batch, batch, "0", "attention_mask")


def test_the_worst_texts_come_with_length_and_neighbours(reference):
    candidate = reference.copy()
    candidate[17] = candidate[99] + np.float32(0.1)
    workload = workload_of(NAMES.queries)
    judge = EmbeddingJudge(workload, reference, LIMITS, Precision.INT8)
    accuracy = judge.judge(candidate)
    worst = accuracy.worst_texts[0]
    assert (worst.index, worst.text) == (17, "text 17")
    assert worst.tokens == workload.evaluation["attention_mask"][17].sum()
    assert worst.neighbours_after[0] == "text 99"
    assert worst.neighbours_before[0] != "text 99"
    assert len(accuracy.worst_texts) == 10
    assert accuracy.cosines[17] == min(accuracy.cosines) == worst.cosine
    assert accuracy.judgement.verdict is Verdict.FAIL
