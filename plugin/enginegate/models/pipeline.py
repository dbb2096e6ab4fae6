"""A model's own pipeline, taken apart so that one thing at a time can be done otherwise.

Texts to tokens, backbone, pooling, Dense layers, normalisation, dimensions. Imports torch.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from enginegate.models.export import load_backbone
from enginegate.models.lengths import Tokens
from enginegate.models.modules import MODULES, read_modules
from enginegate.models.pooling import dimensions
from enginegate.models.spec import DEFAULT_POOLING, ModelSpec
from enginegate.models.tokens import TEXT, TokenSettings, first_position

if TYPE_CHECKING:
    import torch

Vectors: TypeAlias = npt.NDArray[np.float32]
Features: TypeAlias = dict[str, Any]

POOLING, DENSE, NORMALIZE = "Pooling", "Dense", "Normalize"
_MODES = {"cls": "first", "lasttoken": "last"}  # sentence-transformers' words to ours
_AT_ONCE = 32  # texts a batch


@dataclass(frozen=True)
class Ways:
    """Ways to do it; the defaults are the model's own.

    Attributes:
        prompt: what each text begins with.
        case: `lower`, or `kept` where the tokenizer lower-cases.
        length: tokens that a text is cut at.
        cut: side that is cut.
        special: add special tokens.
        side: side of the padding.
        pad: token of the padding.
        attend: to padding, in `attention` only or in `all`.
        types: token type of every token.
        positions: `places` counts padding too, `mask` does not, `plain` is `places` from 0, `zeros`
            are none.
        pooling: `mean`, `first`, `last`, `all` positions or `max`.
        dense: run Dense layers.
        normalize: scale to length 1.
        whole: keep all dimensions.
    """

    prompt: str | None = None
    case: str = ""
    length: int | None = None
    cut: str = ""
    special: bool = True
    side: str = ""
    pad: int | None = None
    attend: str = ""
    types: int | None = None
    positions: str = ""
    pooling: str = ""
    dense: bool = True
    normalize: bool | None = None
    whole: bool = False

    @property
    def to_hidden(self) -> "Ways":
        """Those that the backbone's output depends on."""
        return replace(self, pooling="", dense=True, normalize=None, whole=False)


@dataclass(frozen=True)
class Step:
    """A step after the backbone.

    Attributes:
        kind: its class.
        run: adds to the features.
        mode: of a pooling.
        place: the file or the key that says so.
    """

    kind: str
    run: Callable[[Features], Features]
    mode: str = ""
    place: str = ""


@dataclass(frozen=True)
class Pipeline:
    """A model's own way from a text to its embedding.

    Attributes:
        tokenizer: of transformers.
        backbone: of transformers.
        steps: after it.
        width: tokens that the reference's texts are padded to.
        length: tokens that texts are cut at; None for no limit.
        prompts: by name.
        prompt: of every text.
        dim: dimensions that are kept; None for all.
    """

    tokenizer: Any
    backbone: Any
    steps: Sequence[Step]
    width: int
    length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    dim: int | None = None

    def step(self, kind: str) -> Step | None:
        """The last step of a kind."""
        return next((step for step in reversed(self.steps) if step.kind == kind), None)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embeddings, float32 [texts, dim]; a batch is padded by the tokenizer to its longest."""
        size = _AT_ONCE if self._pads else 1
        order = np.argsort(list(map(len, texts)), kind="stable")  # a batch's texts are alike long
        parts = (order[start : start + size] for start in range(0, len(order), size))
        found = [self.finish(self._as_deployed([texts[n] for n in p]), Ways()) for p in parts]
        ordered: Vectors = np.concatenate(found)[np.argsort(order)]
        return ordered

    @property
    def _pads(self) -> bool:
        """Tell if its tokenizer has a token for padding."""
        return self.tokenizer.pad_token is not None

    def _as_deployed(self, texts: Sequence[str]) -> Features:
        how = {"padding": self._pads, "return_tensors": "pt"}
        how |= {"truncation": self.length is not None, "max_length": self.length}
        batch = self.tokenizer([self.prompt + text for text in texts], **how)
        return self._hidden(dict(batch), batch["attention_mask"])

    def hidden(self, texts: Sequence[str], ways: Ways) -> Features:
        """The backbone's output, padded to the reference's width, and its mask."""
        batch = self._tokens(texts, ways)
        mask = batch["attention_mask"]
        if ways.positions:
            first = first_position(self.backbone.config.to_dict())
            batch["position_ids"] = _positions(mask, ways.positions, first)
        if ways.attend:
            batch["attention_mask"] = mask.new_ones(mask.shape)
        return self._hidden(batch, mask if ways.attend == "attention" else batch["attention_mask"])

    def on_tokens(self, ids: Tokens, mask: Tokens) -> Vectors:
        """Embeddings, float32 [texts, dim], of tokens of somebody else, int64 [texts, seq]."""
        import torch

        kept = torch.from_numpy(np.ascontiguousarray(mask))
        batch = {"input_ids": torch.from_numpy(np.ascontiguousarray(ids)), "attention_mask": kept}
        return self.finish(self._hidden(batch, kept), Ways())

    def _hidden(self, batch: Features, mask: "torch.Tensor") -> Features:
        import torch

        with torch.inference_mode():
            found = self.backbone(**batch).last_hidden_state
        return {"token_embeddings": found, "attention_mask": mask}

    def finish(self, hidden: Features, ways: Ways) -> Vectors:
        """Embeddings, float32 [texts, dim], of the backbone's output."""
        import torch

        features = dict(hidden)
        with torch.inference_mode():
            for step in self.steps:
                features = _taken(step, features, ways)
            vectors = features["sentence_embedding"].float()
            if ways.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
        found: Vectors = vectors[:, : None if ways.whole else self.dim].numpy()
        return found

    def _tokens(self, texts: Sequence[str], ways: Ways) -> Features:
        import torch

        begin, length = ways.prompt if ways.prompt is not None else self.prompt, ways.length
        tokenizer, limit = _tokenizer(self.tokenizer, ways), length or self.length
        said = [text.lower() if ways.case == "lower" else text for text in texts]
        encoded = tokenizer(
            [begin + text for text in said],
            truncation=limit is not None,
            max_length=limit,
            add_special_tokens=ways.special,
        )
        rows, side = encoded["input_ids"], ways.side or tokenizer.padding_side
        width = max(self.width, *map(len, rows))
        pad = ways.pad if ways.pad is not None else tokenizer.pad_token_id or 0
        batch = {
            "input_ids": _padded(rows, pad, width, side),
            "attention_mask": _padded([[1] * len(row) for row in rows], 0, width, side),
        }
        if (types := encoded.get("token_type_ids")) is not None:
            batch["token_type_ids"] = _padded(types, 0, width, side)
        if ways.types is not None:
            batch["token_type_ids"] = np.full_like(batch["input_ids"], ways.types)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def _tokenizer(tokenizer: Any, ways: Ways) -> Any:
    """The tokenizer, or a changed copy."""
    if not (ways.case == "kept" or ways.cut):
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    if ways.cut:
        changed.truncation_side = ways.cut
    if ways.case == "kept":
        rules = json.loads(changed.backend_tokenizer.to_str())
        rules["normalizer"] = _keeping_case(rules["normalizer"])
        changed._tokenizer = type(changed.backend_tokenizer).from_str(json.dumps(rules))
    return changed


def lowers_case(tokenizer: Any) -> bool:
    """Tell if a tokenizer lower-cases texts."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    return bool(_keeping_case(said) != said)


def _keeping_case(rule: Any) -> Any:
    """A normalizer without lower-casing, and without stripping accents where that follows it."""
    if not rule:
        return rule
    if rule["type"] == "Sequence":
        kept = [part for part in rule["normalizers"] if part["type"] != "Lowercase"]
        return {**rule, "normalizers": [_keeping_case(part) for part in kept]}
    if rule["type"] == "Lowercase":
        return None
    return {**rule, "lowercase": False} if rule.get("lowercase") else rule


def _padded(rows: Sequence[Sequence[int]], value: int, width: int, side: str) -> Any:
    found = np.full((len(rows), width), value, dtype=np.int64)
    for place, row in zip(found, rows, strict=True):
        place[slice(width - len(row), width) if side == "left" else slice(len(row))] = row
    return found


def _positions(mask: "torch.Tensor", way: str, offset: int) -> "torch.Tensor":
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    places = mask.new_ones(mask.shape).cumsum(1) - 1
    ways = {"places": places + offset, "plain": places, "mask": counted + offset}
    return ways.get(way, mask.new_zeros(mask.shape))


def _taken(step: Step, features: Features, ways: Ways) -> Features:
    """The features after a step, done otherwise or left out where that is asked for."""
    if step.kind == POOLING and ways.pooling:
        hidden, mask = features["token_embeddings"], features["attention_mask"]
        return {**features, "sentence_embedding": pool(hidden, mask, ways.pooling)}
    left_out = (step.kind == DENSE and not ways.dense) or (
        step.kind == NORMALIZE and ways.normalize is False
    )
    return features if left_out else step.run(features)


def pool(hidden: "torch.Tensor", mask: "torch.Tensor", mode: str) -> "torch.Tensor":
    """A vector a text from one a token, by a mode of `Ways.pooling`."""
    import torch

    weight = mask.unsqueeze(-1).to(hidden.dtype)
    rows, places = torch.arange(len(mask)), torch.arange(mask.shape[1])
    ways = {
        "mean": lambda: (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9),
        "first": lambda: hidden[rows, mask.argmax(1)],
        "last": lambda: hidden[rows, (mask * places).argmax(1)],
        "all": lambda: hidden.mean(1),
        "max": lambda: hidden.masked_fill(weight == 0, -torch.inf).max(1).values,
        "first place": lambda: hidden[:, 0],
        "last place": lambda: hidden[:, -1],
    }
    return ways[mode]()


def places_of(modules: Sequence[Any], folder: Path) -> dict[Any, str]:
    """The file that says so, of every module after the backbone as `folder` lists them."""
    configs = [f"{module.path}/config.json" for module in read_modules(folder)[1:]]
    places = [name if (folder / name).is_file() else MODULES for name in configs]
    return dict(zip(modules, places, strict=True))


def pipeline_of(model: Any, places: Mapping[Any, str], width: int, prompt: str) -> Pipeline:
    """The parts of a sentence-transformers model; a module of no place is the table's."""
    body, *modules = model
    return Pipeline(
        tokenizer=model.tokenizer,
        backbone=body.auto_model,
        steps=[_step(module, places.get(module, "its table")) for module in modules],
        width=width,
        length=model.max_seq_length,
        prompts=dict(model.prompts),
        prompt=prompt,
        dim=model.truncate_dim,
    )


def _step(module: Any, place: str) -> Step:
    mode = getattr(module, "pooling_mode", "")
    named = mode if isinstance(mode, str) else " and ".join(mode)
    return Step(type(module).__name__, module, _MODES.get(named, named), place)


def pipeline_from_table(
    spec: ModelSpec, tokenizer: Any, folder: Path, width: int, settings: TokenSettings
) -> Pipeline:
    """The parts of a transformers model: its own tokenizer, the table's pooling and head."""
    backbone, head = load_backbone(spec, folder)
    pooling, said = spec.pooling or DEFAULT_POOLING, "`pooling`" if spec.pooling else "by default"
    steps = [Step(POOLING, lambda f: _pooled(f, pooling), pooling, said)]
    if spec.head is not None:
        steps.append(Step(DENSE, lambda f: _then(f, head), place="`head`"))
    if spec.normalize:
        steps.append(Step(NORMALIZE, lambda f: _then(f, _normalized), place="`normalize`"))
    return Pipeline(
        tokenizer=tokenizer,
        backbone=backbone,
        steps=steps,
        width=width,
        length=settings.longest,
        prompts=settings.prompts,
        prompt=settings.prompts_with(spec.prompt).get(TEXT, ""),
        dim=dimensions(spec, folder),
    )


def _pooled(features: Features, mode: str) -> Features:
    hidden, mask = features["token_embeddings"], features["attention_mask"]
    return {**features, "sentence_embedding": pool(hidden, mask, mode)}


def _then(features: Features, function: Callable[[Any], Any]) -> Features:
    return {**features, "sentence_embedding": function(features["sentence_embedding"])}


def _normalized(vectors: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.normalize(vectors, dim=1)
