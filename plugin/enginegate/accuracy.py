"""Same embeddings? Differences of an engine's embeddings to the reference's, and their limits."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from enginegate.errors import EmbeddingError, OptionError
from enginegate.variants import Precision

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


@dataclass(frozen=True)
class Limits:
    """How far an engine may be off; what has a default is not limited by it.

    Attributes:
        cosine_worst: smallest allowed cosine of any text.
        cosine_p1: smallest allowed 1st percentile of the cosines.
        max_abs_relative: largest allowed difference, as a share of the reference's largest value.
        gain_error: largest allowed distance of the overall gain from 1.
        invariance: largest allowed change of an embedding with its batch, as a share of the
            largest value.
        recall_at_1, recall_at_10: smallest allowed share of nearest texts kept, mean over queries.
        spearman: smallest allowed rank correlation of similarities, mean over queries.
        spearman_worst: smallest allowed one of a single query.
        ndcg_loss: largest allowed fall of the mean NDCG@10.
        sts_retained: smallest allowed share of the reference's Spearman on labelled pairs.
    """

    cosine_worst: float
    cosine_p1: float
    max_abs_relative: float
    gain_error: float
    invariance: float = 1.0
    recall_at_1: float = 0.0
    recall_at_10: float = 0.0
    spearman: float = -1.0
    spearman_worst: float = -1.0
    ndcg_loss: float = 1.0
    sts_retained: float = -1.0


_FP16 = Limits(0.9999, 0.9999, 2e-3, 1e-3, 2e-3, 0.98, 0.99, 0.9995, 0.9, 0.002, 0.998)
DEFAULT_LIMITS: Mapping[Precision, Limits] = MappingProxyType(
    {
        Precision.FP32: Limits(
            0.99999, 0.99999, 5e-5, 1e-4, 1e-4, 0.99, 0.995, 0.9999, 0.9, 0.001, 0.999
        ),
        Precision.FP16: _FP16,
        Precision.BF16: Limits(0.999, 0.999, 3e-2, 5e-3, 1e-2, 0.9, 0.97, 0.999, 0.9, 0.005, 0.995),
        Precision.INT8: Limits(0.9, 0.98, 0.3, 2e-2, 2e-3, 0.8, 0.9, 0.98, 0.8, 0.015, 0.98),
        Precision.BEST: _FP16,
    }
)


def limits_for(precision: Precision, own: Mapping[str, Mapping[str, float]]) -> Limits:
    """Default limits of a precision with a model's own ones; OptionError for an unknown name."""
    known = [f.name for f in fields(Limits)]
    values = own.get(precision, {})
    if unknown := sorted(set(values) - set(known)):
        raise OptionError(f"unknown accuracy limits {unknown} for {precision}: use {known}")
    return Limits(**{**asdict(DEFAULT_LIMITS[precision]), **values})


def check_sane(embeddings: Array, owner: str) -> None:
    """Raise EmbeddingError for NaN, infinite, all-zero or constant embeddings [texts, dim]."""
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
