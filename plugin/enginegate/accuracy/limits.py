"""How far embeddings may be off, by precision."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType

from enginegate.errors import OptionError
from enginegate.variants import Precision


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
