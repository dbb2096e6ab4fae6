"""Tiny seeded models and tokenizers that the cases are made of. Nothing is fetched."""

import collections
import contextlib
import io
import json
import re
import warnings
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def words(count=3000, lower=True):
    found = collections.Counter()
    for text in topics.values():
        found.update(re.findall(r"\w+|[^\w\s]", text.lower() if lower else text))
    return [word for word, _ in found.most_common(count)]


def write_tokenizer(folder, *, lower=True, side="right", special=SPECIAL, padding=False, limit=512):
    """A WordPiece tokenizer as transformers saves it; `special`: pad, unk, cls, sep, mask."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(set("".join(words(lower=lower))))
    pieces = [*special, *letters, *("##" + c for c in letters), *words(lower=lower)]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    named = dict(zip(("pad", "unk", "cls", "sep", "mask"), _roles(special), strict=True))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=named["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(named["cls"], vocab[named["cls"]]), (named["sep"], vocab[named["sep"]])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{named['cls']} $A {named['sep']}",
        pair=f"{named['cls']} $A {named['sep']} $B:1 {named['sep']}:1",
        special_tokens=ends,
    )
    if padding:
        tokenizer.enable_padding(direction=side, pad_id=vocab[named["pad"]], pad_token=named["pad"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {f"{role}_token": token for role, token in named.items()}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "padding_side": side,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocab)


def _roles(special):
    if special[0] == "<s>":  # as in RoBERTa-like vocabularies: <s> <pad> </s> <unk> <mask>
        return special[1], special[3], special[0], special[2], special[4]
    return special


def bert(vocab, *, folder=None, seed=0, positions=512, hidden=64, layers=1):
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
        initializer_range=0.15,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    if folder:
        model.save_pretrained(folder)
    return model


class Pooled(torch.nn.Module):
    """An encoder with the pooling of one's choice."""

    def __init__(self, body, pooling="mean", normalize=True):
        super().__init__()
        self.body, self.pooling, self.normalize = body, pooling, normalize

    def forward(self, input_ids, attention_mask):
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "tokens":
            return hidden
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = {
            "mean": lambda: (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9),
            "all positions": lambda: hidden.mean(1),
            "first": lambda: hidden[:, 0],
            "last position": lambda: hidden[:, -1],
        }[self.pooling]()
        return torch.nn.functional.normalize(pooled, dim=1) if self.normalize else pooled


def example(batch=3, length=16, pad=0):
    ids = torch.randint(5, 200, (batch, length))
    mask = torch.ones_like(ids)
    ids[0, length // 2 :], mask[0, length // 2 :] = pad, 0
    return ids, mask


def export(
    module,
    path,
    *,
    names=("input_ids", "attention_mask"),
    output="pooled",
    arguments=None,
    dynamo=False,
):
    """Write `module` as an ONNX file with dynamic batch and length.

    Without `dynamo` by torch's exporter of old, as most files that people have: in a tenth of the
    time.
    """
    arguments = arguments or example()
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    named = {name: {0: "batch", 1: "length"} for name in names}
    dynamic = {"dynamic_shapes": (axes,) * len(names)} if dynamo else {"dynamic_axes": named}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # among them that the old one is old
        torch.onnx.export(
            module.eval(),
            arguments,
            str(path),
            input_names=list(names),
            output_names=[output],
            dynamo=dynamo,
            external_data=False,
            verbose=False,
            **dynamic,
        )


def write_project(folder, more="", **keys):
    """A user's project: one table that names the model."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["[tool.enginegate.models.mine]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items())]
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n" + more)


def sentence_folder(folder, source, *, pooling="mean", more=(), limit=64, config=None):
    """A sentence-transformers folder around a transformers folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts

    body = parts.Transformer(str(source), max_seq_length=limit)
    width = body.auto_model.config.hidden_size
    made = SentenceTransformer(
        modules=[body, parts.Pooling(width, pooling_mode=pooling), *more], device="cpu"
    )
    made.save(str(folder))
    if config:
        path = Path(folder) / "config_sentence_transformers.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
