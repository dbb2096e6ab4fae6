"""Engines whose embeddings depend on their batch are caught, with the text and the setting."""

import dataclasses

import numpy as np
import pytest

from enginegate.accuracy.deltas import compare
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.accuracy.stability import Probe, allowed_change, probe_stability
from enginegate.variants import Precision

TEXTS, SEQ, DIM = 80, 8, 12
ALLOWED = DEFAULT_LIMITS[Precision.FP32].invariance


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    mask = (np.arange(SEQ) < rng.integers(2, SEQ + 1, size=(TEXTS, 1))).astype(np.int64)
    return {"ids": rng.integers(1, 50, size=(TEXTS, SEQ)) * mask, "mask": mask}


def plain(batch):
    """Mean of the token vectors that the mask keeps."""
    table = np.random.default_rng(2).normal(size=(50, DIM)).astype(np.float32)
    weights = batch["mask"][..., None].astype(np.float32)
    return (table[batch["ids"]] * weights).sum(axis=1) / weights.sum(axis=1)


def mixes_batch_mates(batch):
    found = plain(batch)
    return found + np.float32(0.01) * found.mean(axis=0)


def wrong_from_row_4_on(batch):
    found = plain(batch)
    found[4:] *= np.float32(1.01)
    return found


def wrong_when_alone(batch):
    return plain(batch) * np.float32(1.01 if len(batch["ids"]) == 1 else 1)


def counts_padding(batch):
    return plain(batch) * np.float32(batch["ids"].shape[1] / SEQ)


def probed(embed, batch, mask="mask"):
    texts = [f"text {row}" for row in range(TEXTS)]
    return probe_stability(Probe(embed, batch, texts, mask), ALLOWED)


def test_an_engine_that_only_sees_its_text(batch):
    invariance, determinism = probed(plain, batch)
    assert invariance.broken == ""
    assert invariance.skipped == ()
    assert list(invariance.settings) == [
        "alone",
        "at another position",
        "in batches of 8",
        "beside other texts",
        "with less padding",
    ]
    assert determinism.bitwise
    assert determinism.max_abs == 0


@pytest.mark.parametrize(
    ("embed", "setting"),
    [
        (mixes_batch_mates, "alone"),
        (wrong_from_row_4_on, "alone"),
        (wrong_when_alone, "alone"),
        (counts_padding, "with less padding"),
    ],
)
def test_whatever_else_matters_is_named_with_its_text(batch, embed, setting):
    invariance, _ = probed(embed, batch)
    assert "an embedding changes with its batch by" in invariance.broken
    assert invariance.settings[setting] > 0
    assert f'{invariance.worst.setting}, of the text "{invariance.worst.text}"' in invariance.broken


def test_only_batch_mates_or_only_the_position(batch):
    mixed, _ = probed(mixes_batch_mates, batch)
    assert mixed.settings["beside other texts"] > 0
    assert mixed.settings["at another position"] < 1e-6
    placed, _ = probed(wrong_from_row_4_on, batch)
    assert placed.settings["at another position"] > 0


def test_padding_that_cannot_be_varied_is_said(batch):
    def fixed(tokens):
        if tokens["ids"].shape[1] != SEQ:
            raise RuntimeError("Got invalid dimensions for input: ids\nIndex 1 Got 3 Expected 8")
        return plain(tokens)

    invariance, _ = probed(fixed, batch)
    assert invariance.broken == ""
    (said,) = invariance.skipped
    assert said == (
        "padding not varied: the engine takes 8 tokens only: Got invalid dimensions for input: ids"
    )
    full = {"ids": np.ones((TEXTS, SEQ), np.int64), "mask": np.ones((TEXTS, SEQ), np.int64)}
    assert probed(plain, full)[0].skipped == ("padding not varied: every text fills its 8 tokens",)
    no_mask, _ = probed(plain, batch, mask=None)
    assert no_mask.skipped == ("padding not varied: the model takes no attention mask",)


def test_an_engine_that_rolls_dice_is_measured(batch):
    rng = np.random.default_rng(3)

    def noisy(tokens):
        return plain(tokens) + rng.normal(scale=1e-3, size=(len(tokens["ids"]), DIM))

    _, determinism = probed(noisy, batch)
    assert not determinism.bitwise
    assert 1e-3 < determinism.max_abs < 1e-1


def test_rounding_may_cost_a_third_of_what_the_engine_is_off_anyway():
    reference = np.random.default_rng(0).normal(size=(9, 4))
    off = compare(reference + 0.3, reference)
    limits = DEFAULT_LIMITS[Precision.INT8]
    assert allowed_change(off, limits) == pytest.approx(off.max_abs_relative / 3)
    exact = dataclasses.replace(off, max_abs=0.0)
    assert allowed_change(exact, limits) == limits.invariance
