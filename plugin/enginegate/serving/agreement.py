"""Correct before fast: served embeddings must be those of the same engine in this process."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginegate.engines import Embeddings, Engine, embed_all
from enginegate.errors import ServingError
from enginegate.models import Batch, take

SPREAD_FACTOR = 3.0  # the server makes batches of sizes and mates that were not tried here
TRIED_TEXTS = 32
FLOOR = 1e-5  # share of the largest component: rounding of f32 kernels that differ by batch size


@dataclass(frozen=True)
class Expected:
    """What the engine gives in this process.

    Attributes:
        embeddings: float32 [texts, dim].
        tolerance: largest difference of a component that the batching alone explains.
    """

    embeddings: Embeddings
    tolerance: float


def expected_embeddings(engine: Engine, batch: Batch, max_batch_size: int) -> Expected:
    """Embed `batch` in this process, and see how far the batching alone moves an embedding."""
    tolerance = batching_tolerance(engine, batch, max_batch_size)
    return Expected(embed_all(engine, batch, max_batch_size), tolerance)


def batching_tolerance(engine: Engine, batch: Batch, max_batch_size: int) -> float:
    """Largest difference of a component that the batching explains, from `TRIED_TEXTS` texts.

    It is `SPREAD_FACTOR` times the largest difference between batch sizes from 1 to
    `max_batch_size`, and at least `FLOOR` times the largest component.
    """
    tried = take(batch, slice(TRIED_TEXTS))
    found = [embed_all(engine, tried, size) for size in _sizes(max_batch_size)]
    spread = max(float(np.abs(other - found[0]).max()) for other in found)
    scale = float(np.abs(found[0]).max())
    return max(SPREAD_FACTOR * spread, FLOOR * scale)


def _sizes(largest: int) -> list[int]:
    """1, 2, 4 and so on, and the largest."""
    doubled = [2**power for power in range(largest.bit_length())]
    return sorted({*doubled, largest})


def check_served(
    served: Embeddings, expected: Expected, texts: Sequence[str] = (), model: str = "the model"
) -> float:
    """The largest difference; ServingError, naming the worst text, if it is beyond the tolerance.

    NaN and other shapes are errors too.
    """
    _check_shapes(served, expected.embeddings, model)
    differences = np.abs(served - expected.embeddings).max(axis=1)
    worst = int(np.nanargmax(np.where(np.isnan(differences), np.inf, differences)))
    if not differences[worst] <= expected.tolerance:
        raise _differs(model, float(differences[worst]), expected.tolerance, _text(texts, worst))
    return float(differences[worst])


def _check_shapes(served: Embeddings, expected: Embeddings, model: str) -> None:
    if served.shape != expected.shape:
        raise ServingError(
            f"{model} on the server answers shape {list(served.shape)}, in this process "
            f"{list(expected.shape)}; serve the engine that is tested"
        )


def _text(texts: Sequence[str], index: int) -> str:
    return f"text {index}" + (f" ({texts[index]!r})" if index < len(texts) else "")


def _differs(model: str, difference: float, tolerance: float, text: str) -> ServingError:
    return ServingError(
        f"{model} on the server gives other embeddings than in this process: {text} differs by "
        f"{difference:.3g}, where batching explains {tolerance:.3g}. Nothing was timed. Look for "
        "numpy 2 in the server's environment, another engine, or another tokenisation there"
    )
