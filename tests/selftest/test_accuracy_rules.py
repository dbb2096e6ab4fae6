"""Deltas and their limits on vectors with known answers."""

import numpy as np
import pytest

from enginegate.accuracy.deltas import compare, violations
from enginegate.accuracy.judge import judge_accuracy
from enginegate.accuracy.limits import DEFAULT_LIMITS, limits_for
from enginegate.errors import EmbeddingError, OptionError
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

LIMITS = DEFAULT_LIMITS[Precision.FP32]


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(256, 96)).astype(np.float32)


def test_identical_embeddings_have_no_delta(reference):
    deltas = compare(reference.copy(), reference)
    assert deltas.max_abs == deltas.mean_abs == 0
    assert deltas.cosine_worst == pytest.approx(1, abs=1e-12)
    assert deltas.gain == pytest.approx(1, abs=1e-12)
    assert violations(deltas, LIMITS) == ()


def test_deltas_of_a_hand_made_pair():
    deltas = compare(np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[4.0, 3.0], [0.0, 1.0]]))
    assert deltas.max_abs == 1
    assert deltas.mean_abs == 0.5
    assert deltas.scale == 4
    assert deltas.cosine_worst == pytest.approx(24 / 25)
    assert deltas.gain == pytest.approx(25 / 26)
    assert deltas.worst_text == 0


def test_one_bad_row_in_256_is_seen_and_named(reference):
    candidate = reference.copy()
    candidate[[17, 18]] = candidate[[18, 17]]
    deltas = compare(candidate, reference)
    assert deltas.worst_text in (17, 18)
    assert any(text.startswith("cosine_worst") for text in violations(deltas, LIMITS))


def test_a_scaled_head_is_seen_although_every_cosine_is_one(reference):
    deltas = compare(reference * np.float32(1.01), reference)
    assert deltas.cosine_worst > 0.9999999
    assert any(text.startswith("gain_error 0.01") for text in violations(deltas, LIMITS))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e.__setitem__((3, 0), np.nan), "NaN or infinity for 1 texts, first: 3"),
        (lambda e: e.__setitem__((3, 0), np.inf), "NaN or infinity for 1 texts, first: 3"),
        (lambda e: e.__setitem__(5, 0), "all zeros for 1 texts, first: 5"),
        (lambda e: e.__setitem__(slice(None), e[0].copy()), "same embedding for all 256 texts"),
    ],
)
def test_insane_embeddings_are_refused_on_either_side(reference, spoil, message):
    bad = reference.copy()
    spoil(bad)
    with pytest.raises(EmbeddingError, match=f"the engine gave {message}|the engine.*{message}"):
        compare(bad, reference)
    with pytest.raises(EmbeddingError, match=f"the reference.*{message}"):
        compare(reference, bad)


def test_another_shape_is_refused(reference):
    with pytest.raises(EmbeddingError, match="shape"):
        compare(reference[:, :90], reference)


def test_looser_limits_are_flagged_never_silent(reference):
    noisy = reference + np.random.default_rng(1).normal(scale=0.02, size=reference.shape)
    deltas = compare(noisy, reference)
    loose, tight = DEFAULT_LIMITS[Precision.INT8], DEFAULT_LIMITS[Precision.FP16]
    judgement = judge_accuracy(deltas, loose, tight)
    assert judgement.verdict is Verdict.FLAGGED
    assert "cosine_p1 0.98" in judgement.reasons[0]
    assert judge_accuracy(deltas, tight, tight).verdict is Verdict.FAIL
    assert judge_accuracy(compare(reference, reference), loose, tight).verdict is Verdict.PASS


def test_a_models_own_limit_replaces_only_that_one():
    limits = limits_for(Precision.INT8, {"int8": {"cosine_p1": 0.5}})
    assert limits.cosine_p1 == 0.5
    assert limits.cosine_worst == DEFAULT_LIMITS[Precision.INT8].cosine_worst
    with pytest.raises(OptionError, match="unknown accuracy limits"):
        limits_for(Precision.INT8, {"int8": {"cosine": 0.5}})
