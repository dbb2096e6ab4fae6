"""Static embeddings: a vector for each token, averaged; StaticEmbedding of sentence-transformers.

That module takes the tokens of all texts in one row, with the offset of each text, and adds no
special tokens. A graph of ids and mask averages the same vectors.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from enginegate.models.lengths import Tokens
from enginegate.models.tokens import Text


def is_static(model: Any) -> bool:
    """Tell if a sentence-transformers model begins with static embeddings."""
    return type(model[0]).__name__ == "StaticEmbedding"


def static_features(model: Any, ids: Any, mask: Any) -> dict[str, Any]:
    """The mean of the vectors of each text's tokens, 0 for none, and what the modules make of it.

    All are torch's tensors: `ids` and `mask` int64 [batch, seq], `sentence_embedding` float32
    [batch, dim].
    """
    vectors = model[0].embedding.weight[ids]
    weight = mask.unsqueeze(-1).to(vectors.dtype)
    mean = (vectors * weight).sum(1) / weight.sum(1).clamp(min=1)
    features = {"sentence_embedding": mean, "attention_mask": mask}
    for module in list(model)[1:]:
        features = module(features)
    return features


def static_tokenizer(model: Any) -> Any:
    """The tokenizer (of tokenizers) as it is used: it adds no special tokens."""
    own = model[0].tokenizer
    rules = json.loads(own.to_str())
    rules["post_processor"] = None
    return type(own).from_str(json.dumps(rules))


def static_tokens(model: Any, texts: Sequence[Text]) -> tuple[Tokens, Tokens]:
    """The ids that the model gives the texts, padded to the longest with 0, and their mask."""
    found = model[0].preprocess(list(texts))
    rows = np.split(found["input_ids"].numpy(), found["offsets"].numpy()[1:])
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, kept, row in zip(ids, mask, rows, strict=True):
        place[: len(row)], kept[: len(row)] = row, 1
    return ids, mask


def cut_static(model: Any, length: int | None) -> None:
    """Cut texts at a number of tokens; by itself the module cuts none."""
    if length is not None:
        model[0].tokenizer.enable_truncation(length)
