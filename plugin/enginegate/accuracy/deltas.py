"""Same embeddings? Differences of an engine's embeddings to the reference's, and their limits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enginegate.accuracy.limits import Limits
from enginegate.errors import EmbeddingError

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Deltas:
    """Differences between two sets of embeddings of the same texts.

    Attributes:
        max_abs: largest absolute difference of a component.
        mean_abs: mean absolute difference of a component.
        scale: largest absolute component of the reference; `max_abs` is judged relative to it.
        cosine_worst: smallest cosine of a text's two vectors.
        cosine_p1: 1st percentile of those cosines.
        gain: least-squares factor from reference to candidate, <c, r> / <r, r>; 1 when nothing
            is scaled. Cosine cannot see a scaled head, this can.
        worst_text: index of the text with the smallest cosine.
    """

    max_abs: float
    mean_abs: float
    scale: float
    cosine_worst: float
    cosine_p1: float
    gain: float
    worst_text: int

    @property
    def max_abs_relative(self) -> float:
        """`max_abs` as a share of the reference's largest component."""
        return self.max_abs / self.scale

    @property
    def gain_error(self) -> float:
        """Distance of `gain` from 1."""
        return abs(self.gain - 1)


def check_sane(embeddings: Array, owner: str) -> None:
    """Raise EmbeddingError for NaN, infinite, all-zero or constant embeddings [texts, dim]."""
    if embeddings.ndim != 2:  # noqa: PLR2004
        raise EmbeddingError(
            f"{owner} gave shape {list(embeddings.shape)}, not one vector a text: name its pooled "
            "output with `output` in the model's table"
        )
    if bad := np.flatnonzero(~np.isfinite(embeddings).all(axis=1)).tolist():
        raise EmbeddingError(f"{owner} gave NaN or infinity for {len(bad)} texts, first: {bad[0]}")
    if zero := np.flatnonzero(~embeddings.any(axis=1)).tolist():
        raise EmbeddingError(f"{owner} gave all zeros for {len(zero)} texts, first: {zero[0]}")
    if len(embeddings) > 1 and (embeddings == embeddings[0]).all():
        raise EmbeddingError(f"{owner} gave the same embedding for all {len(embeddings)} texts")


def compare(candidate: Array, reference: Array) -> Deltas:
    """Deltas of a candidate to the reference, both [texts, dim] of the same texts; in float64.

    Raises EmbeddingError if either is not sane or their shapes differ.
    """
    check_sane(reference, "the reference")
    check_sane(candidate, "the engine")
    if candidate.shape != reference.shape:
        raise EmbeddingError(
            f"the engine gave shape {list(candidate.shape)}, the reference {list(reference.shape)}"
        )
    found, expected = candidate.astype(np.float64), reference.astype(np.float64)
    difference = np.abs(found - expected)
    cosines = cosines_of(found, expected)
    return Deltas(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        scale=float(np.abs(expected).max()),
        cosine_worst=float(cosines.min()),
        cosine_p1=float(np.quantile(cosines, 0.01)),
        gain=float((found * expected).sum() / (expected * expected).sum()),
        worst_text=int(cosines.argmin()),
    )


def cosines_of(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """Cosine of each text's two vectors, from [texts, dim] to [texts], in float64; none is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float64] = (a * b).sum(axis=1) / lengths
    return cosines


def violations(deltas: Deltas, limits: Limits) -> tuple[str, ...]:
    """Every limit the deltas break, in words with both numbers; empty if none."""
    low = [n for n in ("cosine_worst", "cosine_p1") if getattr(deltas, n) < getattr(limits, n)]
    high = [
        n for n in ("max_abs_relative", "gain_error") if getattr(deltas, n) > getattr(limits, n)
    ]
    below = [f"{n} {getattr(deltas, n):.6g} < {getattr(limits, n):g}" for n in low]
    above = [f"{n} {getattr(deltas, n):.3g} > {getattr(limits, n):g}" for n in high]
    return (*below, *above)
