"""Faults planted between a model and its `.onnx` file, judged by the truth.

    python benchmarks/planted_models.py [--torch] [NAME]

Models are small, of the shapes of BERT, XLM-R, ModernBERT and Qwen3, with seeded weights: a
sentence-transformers folder of each, and files that were exported from it. Says of each planted
fault if it was caught, and if the cause that is named is the planted one; NAME picks those whose
name holds it. With `--torch` nothing is exported: the modules that the files are exported from are
judged instead, in a tenth of the time. Exports without a fault: clean_exports.py. Needs the extras
cpu and export, and sentence-transformers.
"""

import argparse
import contextlib
import functools
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/selftest/cases"))
import families
import shapes
from sentence_transformers import models as parts

from enginegate.cache import Store
from enginegate.engines import run_reference
from enginegate.models import Batch, Kind, ModelSpec, Workload, make_workload, read_texts
from enginegate.models.export import load_pipeline
from enginegate.models.tokens import Encoded
from enginegate.session.truth import judged_by_truth
from enginegate.verdicts import Verdict

WIDTH, LENGTH, LIMIT = 32, 24, 64
PROMPT = "search for: "
Embed = Callable[[Batch], Any]
INPUTS = {"input_ids": "ids", "attention_mask": "mask"}
TEXTS = read_texts(None)[1][:60]


# The models


SHAPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "bert": ("cls", {}),
    "xlm-r": ("mean", {"special": families.ROBERTA}),
    "modernbert": ("cls", {}),
    "qwen3": ("lasttoken", {"side": "left"}),
}  # pooling, and what is not usual of the tokenizer


@dataclass(frozen=True)
class Published:
    """A model as its authors published it."""

    shape: str
    folder: Path
    source: Path


def published(
    place: Path,
    shape: str,
    *,
    seed: int = 0,
    pooling: str = "",
    ends: Sequence[str] = ("normalize",),
    hidden: int = WIDTH,
    layers: int = 2,
    config: Mapping[str, Any] | None = None,
) -> Published:
    """A sentence-transformers folder with seeded weights."""
    (make, _), (own, how) = families.SENTENCES[shape], SHAPES[shape]
    source, folder = place / "base", place / "model"
    sized = functools.partial(make, hidden=hidden, layers=layers)
    families.transformers_folder(sized, source, seed=seed, **how)
    made = {"dense": lambda: parts.Dense(hidden, hidden), "normalize": parts.Normalize}
    more = [made[end]() for end in ends]
    shapes.sentence_folder(
        folder, source, pooling=pooling or own, more=more, limit=LIMIT, config=config
    )
    return Published(shape, folder, source)


# The files


@dataclass(frozen=True)
class Edits:
    """What a file does otherwise than its model.

    Attributes:
        pooling: a mode of sentence-transformers, `all` or `place` (first or last, by the side).
        drop: classes of modules that are left out.
        unmasked: padding is attended to.
        positions: `zeros` or `plain`.
        types: token type of every token.
        pad: the mask is made of the tokens: what is not this one.
        whole: all dimensions are kept.
    """

    pooling: str = ""
    drop: tuple[str, ...] = ()
    unmasked: bool = False
    positions: str = ""
    types: int | None = None
    pad: int | None = None
    whole: bool = False


class Exporting(torch.nn.Module):
    """A sentence-transformers model from tokens on, with edits."""

    def __init__(self, model: Any, edits: Edits) -> None:
        super().__init__()
        self.body = model[0].auto_model
        self.tail = torch.nn.ModuleList(list(model)[1:])
        self.edits, self.left = edits, model.tokenizer.padding_side == "left"
        self.dim = None if edits.whole else model.truncate_dim
        if edits.pooling not in ("", "all", "place"):
            self.tail[0].pooling_mode = edits.pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, dim] of tokens [batch, seq]."""
        edits, given = self.edits, {}
        mask = attention_mask
        if edits.pad is not None:
            mask = (input_ids != edits.pad).long() + 0 * attention_mask
        if edits.positions:
            places = torch.ones_like(input_ids).cumsum(1) - 1
            given["position_ids"] = places * int(edits.positions == "plain")
        if edits.types is not None:
            given["token_type_ids"] = torch.ones_like(input_ids) * edits.types
        seen = torch.ones_like(mask) if edits.unmasked else mask
        hidden = self.body(input_ids=input_ids, attention_mask=seen, **given).last_hidden_state
        features = {"token_embeddings": hidden, "attention_mask": mask}
        for module in self.tail:
            name = type(module).__name__
            if name == "Pooling" and edits.pooling in ("all", "place"):
                last = hidden[:, -1 if self.left else 0]
                features["sentence_embedding"] = (
                    hidden.mean(1) + 0 * mask.sum() if edits.pooling == "all" else last
                )
            elif name not in edits.drop:
                features = module(features)
        return features["sentence_embedding"][:, : self.dim]


def exported(made: Published, edits: Edits, path: Path, *, in_torch: bool) -> Embed:
    """Embeddings of tokens by an exported file, or by the module that it would be exported from."""
    spec = ModelSpec("planted", Kind.SENTENCE_TRANSFORMERS, str(made.folder))
    model = load_pipeline(spec, made.folder, attn_implementation="eager").float()
    module = Exporting(model, edits).eval()
    if not in_torch:
        shapes.export(module, path)
        return lambda batch: run_reference(path, batch)

    def embed(batch: Batch) -> Any:
        with torch.inference_mode():
            return module(*(torch.from_numpy(batch[name]) for name in INPUTS)).numpy()

    return embed


@dataclass(frozen=True)
class Tokens:
    """How the texts become tokens; the defaults are the model's own but for the length."""

    prompt: str = ""
    side: str = ""
    length: int = LENGTH
    cut: str = "right"
    case: bool = False
    special: bool = True
    pad: int | None = None


def workload_of(made: Published, how: Tokens) -> Workload:
    from transformers import AutoTokenizer

    folder = made.source
    if how.case:
        rules = json.loads((made.source / "tokenizer.json").read_text())
        rules["normalizer"]["lowercase"] = False
        folder = made.source.parent / "kept"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(rules))
        config = (made.source / "tokenizer_config.json").read_text()
        (folder / "tokenizer_config.json").write_text(config)
    own = AutoTokenizer.from_pretrained(folder, truncation_side=how.cut)
    if how.side:
        own.padding_side = how.side

    def tokenize(texts: Sequence[str]) -> Encoded:
        short = own(
            [how.prompt + text for text in texts],
            truncation=True,
            max_length=how.length,
            add_special_tokens=how.special,
        )
        found = own.pad(short, padding="max_length", max_length=LENGTH, return_tensors="np")
        ids, mask = (np.asarray(found[name], np.int64) for name in INPUTS)
        ids = np.where(mask == 0, how.pad, ids) if how.pad is not None else ids
        return Encoded(ids, mask, np.zeros_like(ids), cut=0)

    return make_workload("texts", TEXTS, tokenize, INPUTS)


# The faults


@dataclass(frozen=True)
class Fault:
    """A planted fault: how the file, the tokens or the folder differ, and words of its cause."""

    shape: str
    name: str
    said: str
    edits: Edits = Edits()
    tokens: Tokens = Tokens()
    model: Mapping[str, Any] = field(default_factory=dict)


PROMPTED = {"prompts": {"query": PROMPT, "passage": "text: "}, "default_prompt_name": "query"}
FAULTS = [
    Fault("bert", "mean instead of the first", "file pools by mean, the m", Edits(pooling="mean")),
    Fault("bert", "all positions", "padding included", Edits(pooling="all")),
    Fault("bert", "not normalised", "does not normalise", Edits(drop=("Normalize",))),
    Fault(
        "bert",
        "Dense left out",
        "leaves out the Dense layer",
        Edits(drop=("Dense",)),
        model={"ends": ("dense", "normalize")},
    ),
    Fault("bert", "padding attended to", "not mask padding in its attention", Edits(unmasked=True)),
    Fault("bert", "one position", "positions that are all the same", Edits(positions="zeros")),
    Fault("bert", "token types of 1", "token types 1", Edits(types=1)),
    Fault(
        "bert",
        "all dimensions",
        "keeps all dimensions",
        Edits(whole=True),
        model={"config": {"truncate_dim": 16}},
    ),
    Fault("bert", "prompt dropped", "have no prompt", model={"config": PROMPTED}),
    Fault(
        "bert",
        "prompt twice",
        "twice",
        tokens=Tokens(prompt=2 * PROMPT),
        model={"config": PROMPTED},
    ),
    Fault(
        "bert",
        "another prompt",
        "begin with the prompt 'text: '",
        tokens=Tokens(prompt="text: "),
        model={"config": PROMPTED},
    ),
    Fault("bert", "capitals kept", "keep their capitals", tokens=Tokens(case=True)),
    Fault("bert", "cut at 8", "cut at 8 tokens", tokens=Tokens(length=8)),
    Fault("bert", "cut on the left", "cut on the left", tokens=Tokens(cut="left")),
    Fault("bert", "no special tokens", "lack the special", tokens=Tokens(special=False)),
    Fault("bert", "padded on the left", "pads on the left", tokens=Tokens(side="left")),
    Fault("xlm-r", "first instead of mean", "pools by the first", Edits(pooling="cls")),
    Fault("xlm-r", "all positions", "padding included", Edits(pooling="all")),
    Fault("xlm-r", "not normalised", "does not normalise", Edits(drop=("Normalize",))),
    Fault("xlm-r", "positions from 0", "positions that begin at 0", Edits(positions="plain")),
    Fault(
        "xlm-r",
        "pads with 0, masks 1",
        "pads with token 0 and does not mask it",
        Edits(pad=1),
        Tokens(pad=0),
    ),
    Fault("xlm-r", "prompt dropped", "have no prompt", model={"config": PROMPTED}),
    Fault("xlm-r", "capitals kept", "keep their capitals", tokens=Tokens(case=True)),
    Fault("xlm-r", "cut at 16", "cut at 16 tokens", tokens=Tokens(length=16)),
    Fault("modernbert", "mean instead of the first", "pools by mean", Edits(pooling="mean")),
    Fault("modernbert", "not normalised", "does not normalise", Edits(drop=("Normalize",))),
    Fault("modernbert", "padding attended to", "not mask padding in its", Edits(unmasked=True)),
    Fault(
        "modernbert",
        "normalised instead of not",
        "file normalises, the model does not",
        Edits(),
        model={"ends": ()},
    ),
    Fault("modernbert", "no special tokens", "lack the special", tokens=Tokens(special=False)),
    Fault("qwen3", "mean instead of the last", "pools by mean", Edits(pooling="mean")),
    Fault(
        "qwen3",
        "padded on the right",
        "pads on the right",
        Edits(pooling="place"),
        Tokens(side="right"),
    ),
    Fault("qwen3", "not normalised", "does not normalise", Edits(drop=("Normalize",))),
    Fault("qwen3", "no special tokens", "lack the special", tokens=Tokens(special=False)),
    Fault("qwen3", "prompt dropped", "have no prompt", model={"config": PROMPTED}),
    Fault(
        "qwen3",
        "all dimensions",
        "keeps all dimensions",
        Edits(whole=True),
        model={"config": {"truncate_dim": 16}},
    ),
]


def judged(made: Published, embed: Embed, workload: Workload, store: Store) -> Any:
    spec = ModelSpec("planted", Kind.ONNX, "x.onnx", truth=str(made.folder), seq_len=LENGTH)
    reference = embed(workload.evaluation)
    return judged_by_truth(spec, store, workload, reference, lambda _: contextlib.nullcontext())


def file_of(place: Path, made: Published, fault: Fault, *, in_torch: bool) -> Embed:
    """The faulty file; one that normalises is exported from a folder that does."""
    if fault.name == "normalised instead of not":
        made = published(place / "normalised", fault.shape)
    return exported(made, fault.edits, place / "model.onnx", in_torch=in_torch)


def plant(wanted: str, *, in_torch: bool) -> int:
    """Print what became of every fault; the number that were missed or named wrongly."""
    caught = named = total = 0
    for fault in FAULTS:
        if wanted not in f"{fault.shape} {fault.name}":
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            made = published(place, fault.shape, **fault.model)
            embed = file_of(place, made, fault, in_torch=in_torch)
            found = judged(made, embed, workload_of(made, fault.tokens), Store(place / "cache"))
        is_caught, is_named = found.judgement.verdict is Verdict.FAIL, fault.said in found.cause
        caught, named, total = caught + is_caught, named + is_named, total + 1
        word = "named " if is_named else "caught" if is_caught else "MISSED"
        print(f"{word}  {fault.shape:10} {fault.name:26} {found.cause or found.text}", flush=True)
    print(f"{total} planted: {caught} caught, the cause of {named} named rightly", flush=True)
    return total - named


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="*")
    parser.add_argument("--torch", action="store_true")
    given = parser.parse_args()
    return int(plant(" ".join(given.name), in_torch=given.torch) > 0)


if __name__ == "__main__":
    sys.exit(main())
