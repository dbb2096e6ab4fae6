"""Served embeddings against those of this process."""

import numpy as np
import pytest

from enginegate.engines import Executed
from enginegate.errors import ServingError
from enginegate.serving.agreement import Expected, check_served, expected_embeddings


@pytest.fixture
def batch():
    ids = np.random.default_rng(0).integers(1, 200, (64, 8))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


class Wobbly:
    """An engine that differs by the size of the batch, as int8 does."""

    executed = Executed({})

    def __init__(self, wobble):
        self.wobble = wobble

    def embed(self, batch):
        ids = batch["input_ids"].astype(np.float32)
        return ids / 200 + self.wobble * len(ids)


class TestAgreement:
    def test_tolerance_is_what_batching_explains(self, batch):
        expected = expected_embeddings(Wobbly(1e-3), batch, 8)
        assert expected.tolerance == pytest.approx(3 * 7e-3, rel=1e-3)

    def test_floor_of_a_steady_engine(self, batch):
        expected = expected_embeddings(Wobbly(0), batch, 8)
        assert expected.tolerance == pytest.approx(1e-5 * expected.embeddings.max())

    def test_same_embeddings(self, batch):
        expected = expected_embeddings(Wobbly(0), batch, 8)
        assert check_served(expected.embeddings, expected) == 0

    def test_the_worst_text_is_named(self):
        expected = Expected(np.ones((3, 4), np.float32), 0.01)
        served = expected.embeddings + np.array([[0], [0.5], [0.1]], np.float32)
        words = r"tiny on the server .*: text 1 \('two'\) differs by 0.5, where .* 0.01\. Nothing"
        with pytest.raises(ServingError, match=words):
            check_served(served, expected, ["one", "two", "three"], "tiny")

    def test_first_component_repeated(self, batch):
        """What numpy 2 does in the server."""
        expected = expected_embeddings(Wobbly(0), batch, 8)
        served = np.repeat(expected.embeddings[:, :1], expected.embeddings.shape[1], axis=1)
        with pytest.raises(ServingError, match="Look for numpy 2"):
            check_served(served, expected)

    def test_nan(self):
        expected = Expected(np.ones((2, 4), np.float32), 0.01)
        served = np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]], np.float32)
        with pytest.raises(ServingError, match="text 1 differs by nan"):
            check_served(served, expected)

    def test_another_shape(self):
        expected = Expected(np.ones((2, 4), np.float32), 0.01)
        with pytest.raises(ServingError, match=r"answers shape \[2, 3\], in this process \[2, 4\]"):
            check_served(np.ones((2, 3), np.float32), expected)
