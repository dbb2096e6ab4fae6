"""A few embeddings as a report keeps them, so that those of two machines can be compared."""

import base64
import binascii
from dataclasses import dataclass, replace

import numpy as np

from enginegate.accuracy.deltas import Array, Deltas, compare, violations
from enginegate.accuracy.limits import Limits
from enginegate.errors import EmbeddingError

_MOST_TEXTS, _MOST_BYTES = 8, 1 << 15  # keeps a report small, also with thousands of dimensions


@dataclass(frozen=True)
class Sample:
    """Embeddings of a few evaluation texts, the same texts on every machine.

    Attributes:
        texts: their indices, evenly spread.
        float32: the embeddings [texts, dim] in base64, little-endian, row by row.
    """

    texts: tuple[int, ...]
    float32: str


def sample_of(embeddings: Array) -> Sample:
    """A sample of embeddings [texts, dim]."""
    total, dims = embeddings.shape
    count = min(total, _MOST_TEXTS, max(2, _MOST_BYTES // (4 * dims)))
    texts = np.unique(np.linspace(0, total - 1, count).round().astype(int))
    content = embeddings[texts].astype("<f4").tobytes()
    return Sample(tuple(map(int, texts)), base64.b64encode(content).decode())


def disagreement(one: Sample, other: Sample, limits: Limits) -> tuple[Deltas, tuple[str, ...]]:
    """Deltas of `other` to `one`, and the limits that they break, in words.

    A few texts have no 1st percentile, so that limit is left out. Raises EmbeddingError for samples
    of other texts, or that are damaged.
    """
    if one.texts != other.texts:
        raise EmbeddingError("the samples are of other texts")
    deltas = compare(_embeddings(other), _embeddings(one))
    return deltas, violations(deltas, replace(limits, cosine_p1=-1))


def _embeddings(sample: Sample) -> Array:
    """The embeddings of a sample, float32 [texts, dim]. Raises EmbeddingError."""
    try:
        found = np.frombuffer(base64.b64decode(sample.float32, validate=True), "<f4")
        return found.reshape(len(sample.texts), -1)
    except (binascii.Error, ValueError) as error:
        raise EmbeddingError("the sample of embeddings in the report is damaged") from error
