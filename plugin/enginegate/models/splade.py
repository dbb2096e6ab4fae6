"""SPLADE: how much each word of the vocabulary is meant, at most over a text's tokens, or in sum.

Sentence-transformers computes it in steps of some tokens, which fixes the length of an export; a
graph of ids and mask does it in one.
"""

from typing import Any

_POOLING = "SpladePooling"


def is_splade(model: Any) -> bool:
    """Tell if a sparse encoder is one transformer with SPLADE's pooling."""
    return len(model) == 2 and type(model[1]).__name__ == _POOLING  # noqa: PLR2004


def splade_weights(model: Any, ids: Any, mask: Any) -> Any:
    """Weights of words, float32 [batch, vocabulary], of torch's `ids` and `mask` [batch, seq]."""
    features = model[0]({"input_ids": ids, "attention_mask": mask})
    logits, pooling = features["token_embeddings"], model[1]
    weights = (logits * mask.unsqueeze(-1).to(logits.dtype)).relu().log1p()
    if pooling.activation_function == "log1p_relu":
        weights = weights.log1p()
    return weights.amax(1) if pooling.pooling_strategy == "max" else weights.sum(1)
