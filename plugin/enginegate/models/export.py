"""From a model definition to a checked ONNX file. The one module that imports torch."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from enginegate.cache import Store
from enginegate.errors import ModelError
from enginegate.files import parse_json, read_text, sha256_of
from enginegate.models import sources
from enginegate.models.pooling import (
    dimensions,
    is_pipeline,
    leaves_prompt_out,
    otherwise,
    own_modules,
)
from enginegate.models.spec import OWN_CODE, Exported, Kind, ModelSpec
from enginegate.models.tokens import (
    TEXT,
    Tokenize,
    TokenSettings,
    file_tokenizer,
    limit_of,
    lower_case,
    open_tokenizer,
    overruled,
    positions_of,
    settings_at,
    settings_of,
)
from enginegate.models.workload import Batch, hashed_tokenizer, read_texts, take

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

OUTPUT = "sentence_embedding"  # an output named `embedding` collides inside torch's exporter
_TOLERANCE = 1e-4  # of the largest value; fp32 on two runtimes agrees to about 1e-6
_TOKENIZER = "tokenizer.json"
_COMPARED_TEXTS = 64
_TOKENIZER_FILES = (_TOKENIZER, "vocab.txt", "vocab.json", "*.model")

RunOnnx = Callable[[Path, Batch], npt.NDArray[np.float32]]


def export_model(spec: ModelSpec, store: Store, run_onnx: RunOnnx) -> Exported:
    """The model's ONNX file, exported once per content and compared with torch before use.

    `run_onnx(file, batch)` runs the file in fp32 and returns [batch, dim]. Raises ModelError if
    the model is missing, half there, cannot be exported, or its export differs from torch.
    """
    if spec.kind is Kind.ONNX:
        return _ready(sources.ready_onnx(spec, store))
    source = sources.locate(spec, store)
    _check_length(spec, _positions(spec, source))
    entry = store.get_or_build(
        "model",
        sources.content_key(spec, source),
        lambda folder: _export(spec, source, folder, run_onnx),
    )
    tokenizer = entry.folder / _TOKENIZER
    tokens = TokenSettings(**entry.properties["tokens"])
    if entry.properties["leaves_prompt_out"] and tokens.prompts_with(spec.prompt):
        raise _unpooled_prompt(spec)
    return Exported(
        spec=spec,
        onnx=entry.folder / "model.onnx",
        sha256=entry.properties["sha256"],
        weights=entry.properties["weights"] + (OWN_CODE if spec.trust_remote_code else ""),
        tokenizer=tokenizer if tokenizer.exists() else None,
        inputs={"input_ids": "ids", "attention_mask": "mask"},
        output=OUTPUT,
        note=entry.note,
        tokens=tokens,
        overruled=(*overruled(tokens, spec.seq_len, spec.prompt), *_overruled(spec, source)),
    )


def _ready(model: Exported) -> Exported:
    """A ready file, with what the files beside its tokenizer say."""
    if model.tokenizer is None:
        return model
    tokens = settings_of(model.tokenizer.parent, open_tokenizer(model.tokenizer))
    _check_length(model.spec, tokens.positions)
    return replace(
        model,
        tokens=tokens,
        overruled=tuple(overruled(tokens, model.spec.seq_len, model.spec.prompt)),
    )


def tokenize_with(model: Exported, role: str = TEXT) -> Tokenize:
    """The model's own tokenizer, or hashed words where it has none but a vocabulary size.

    `role` is that of the texts: it decides which prompt they begin with.
    """
    prompt = model.prompts.get(role, "")
    tokenize = _tokenizer(model.spec, model.tokenizer, model.tokens)
    return lambda texts: tokenize([prompt + text for text in texts])


def _tokenizer(spec: ModelSpec, tokenizer: Path | None, tokens: TokenSettings) -> Tokenize:
    seq_len = tokens.seq_len(spec.seq_len)
    if tokenizer is not None:
        return file_tokenizer(tokenizer, seq_len, tokens)
    if spec.vocab_size is None:
        raise ModelError(
            f"model {spec.name} has no tokenizer: give `tokenizer` (a folder or tokenizer.json), "
            f"or `vocab_size` to hash words, in [tool.enginegate.models.{spec.name}]"
        )
    return hashed_tokenizer(spec.vocab_size, seq_len)


def _positions(spec: ModelSpec, source: "sources.Source") -> int | None:
    """Tokens that the model has positions for, as its configuration says; None if it does not."""
    if source is None:
        return positions_of(spec.architecture or {})
    if not isinstance(source, Path):
        return None
    return settings_at(source, TokenSettings()).positions


def _check_length(spec: ModelSpec, positions: int | None) -> None:
    if spec.seq_len and positions and spec.seq_len > positions:
        raise ModelError(
            f"model {spec.name}: seq_len = {spec.seq_len}, and its config.json has positions for "
            f"{positions} tokens: give at most {positions} in "
            f"[tool.enginegate.models.{spec.name}], or leave it out"
        )


def _unpooled_prompt(spec: ModelSpec) -> ModelError:
    return ModelError(
        f"model {spec.name}: its pooling leaves the tokens of a prompt out (include_prompt is "
        f'false), which an ONNX file with ids and mask alone cannot: say `prompt = ""` in '
        f"[tool.enginegate.models.{spec.name}] to judge it without, or build it in a `factory`"
    )


def _overruled(spec: ModelSpec, source: "sources.Source") -> Iterator[str]:
    """Statements of what a table says otherwise than the model's own files do."""
    if not isinstance(source, Path):
        return
    yield from otherwise(spec, source)
    named = Path(spec.tokenizer) if spec.tokenizer else source
    if _holds_tokenizer(source) and source not in (named, named.parent):
        yield f"tokenizer {named.name}, where the model has its own"


def _export(
    spec: ModelSpec, source: "sources.Source", folder: Path, run_onnx: RunOnnx
) -> Mapping[str, Any]:
    own = _own_tokens(spec, source)
    encoder, weights = _encoder(spec, source, own.settings.padding_side if own else "right")
    own = own or _pipeline_tokens(spec, source, encoder)
    tokenizer = _save_tokenizer(spec, own, folder / _TOKENIZER) if own else None
    tokens = own.settings if own else TokenSettings(positions=_positions(spec, source))
    encoded = _tokenizer(spec, tokenizer, tokens)(read_texts(None)[1][:4])
    batch = {"input_ids": encoded.ids, "attention_mask": encoded.mask}
    path = folder / "model.onnx"
    try:
        _write_onnx(encoder, batch, path)
    except Exception as error:  # the exporter raises many kinds
        raise ModelError(f"model {spec.name} cannot be exported to ONNX: {error}") from error
    difference = _check(spec, encoder, batch, path, run_onnx)
    return {
        "sha256": sha256_of(path),
        "weights": weights,
        "max_abs_to_torch": difference,
        "tokens": asdict(tokens),
        "leaves_prompt_out": spec.kind is not Kind.FACTORY and leaves_prompt_out(encoder),
    }


def _encoder(
    spec: ModelSpec, source: "sources.Source", side: str = "right"
) -> tuple["torch.nn.Module", str]:
    """A module from (ids, mask), int64 [batch, seq], to float32 [batch, dim]; its origin."""
    if source is not None and not isinstance(source, Path):
        return source.eval().float(), f"from factory {spec.source}"
    if spec.kind is Kind.SENTENCE_TRANSFORMERS:
        if source is None:
            raise ModelError(
                f"model {spec.name}: {spec.source!r} holds no weights: name its folder"
            )
        return _sentence_transformer(spec, source), sources.named(spec)
    return _pooled(spec, source, side)


def _sentence_transformer(spec: ModelSpec, folder: Path) -> "torch.nn.Module":
    import torch
    from sentence_transformers import SentenceTransformer

    def load() -> Any:
        _refuse_foreign_modules(spec, folder)
        return SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            model_kwargs={"attn_implementation": "eager", "use_safetensors": True},
        )

    model = _loaded(spec, folder, load)
    kept = dimensions(spec, folder)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            features = self.model({"input_ids": ids, "attention_mask": mask})
            return _cut(features["sentence_embedding"], kept)

    return Encoder().eval().float()


def _loaded(spec: ModelSpec, folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` returns; nothing is unpickled, whatever a library falls back to."""
    import torch

    try:
        with mock.patch.object(torch, "load", side_effect=ValueError("only safetensors are read")):
            return load()
    except ModelError:
        raise
    except Exception as error:  # half a folder fails in many ways
        raise _refused(spec, folder, str(error)) from error


def _refused(spec: ModelSpec, folder: Path, said: str) -> ModelError:
    if "trust_remote_code" in said:
        return _own_code(spec, folder)
    found = sorted(folder.rglob("pytorch_model*.bin"))
    pickled = [path for path in found if not any(path.parent.glob("*.safetensors"))]
    if not pickled or "safetensors" not in said:
        return _half_there(spec, folder, said)
    return ModelError(
        f"model {spec.name}: {pickled[0]} is a pickle, which could run code as it is read: only "
        "safetensors are read; take a revision that has them, or load the model where you trust it "
        "and save it again"
    )


def _refuse_foreign_modules(spec: ModelSpec, folder: Path) -> None:
    """Raise ModelError if a pipeline names classes that are not sentence-transformers' own."""
    modules = [part["type"] for part in _json(folder / "modules.json", [])]
    routed = [_json(path, {}).get("types", {}) for path in folder.rglob("router_config.json")]
    named = [*modules, *(name for types in routed for name in types.values())]
    foreign = [name for name in named if not name.startswith("sentence_transformers.")]
    if foreign and not spec.trust_remote_code:
        raise _own_code(spec, folder)


def _json(path: Path, default: Any) -> Any:
    return parse_json(read_text(path)) if path.exists() else default


def _own_code(spec: ModelSpec, folder: Path | str) -> ModelError:
    return ModelError(
        f"model {spec.name}: {folder} cannot be loaded without running code of its own, which is "
        f"not done: read that code, then say `trust_remote_code = true` in "
        f"[tool.enginegate.models.{spec.name}]"
    )


def _half_there(spec: ModelSpec, folder: Path | None, error: object) -> ModelError:
    return ModelError(f"model {spec.name}: folder {folder} is not whole: {error}; fetch it again")


def _pooled(spec: ModelSpec, folder: Path | None, side: str) -> tuple["torch.nn.Module", str]:
    backbone = _seeded_backbone(spec) if folder is None else _stored_backbone(spec, folder)
    if folder is not None and is_pipeline(spec, folder):
        encoder = _pipeline(spec, folder, backbone)
    else:
        encoder = _headed(spec, folder, backbone, side)
    return encoder.eval().float(), _origin(spec, folder)


def _pipeline(spec: ModelSpec, folder: Path, backbone: Any) -> "torch.nn.Module":
    """The backbone with what the folder's `modules.json` says behind it."""
    import torch

    modules = _loaded(spec, folder, lambda: own_modules(spec, folder))
    kept = dimensions(spec, folder)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.tail = backbone, torch.nn.ModuleList(modules)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            features = {"token_embeddings": hidden, "attention_mask": mask}
            for module in self.tail:
                features = module(features)
            return _cut(features["sentence_embedding"], kept)

    return Encoder()


def _headed(spec: ModelSpec, folder: Path | None, backbone: Any, side: str) -> "torch.nn.Module":
    """The backbone with the pooling, the head and the normalisation of the table behind it."""
    import torch

    head = _head(spec, backbone.config.hidden_size)
    pooling, normalize, kept = spec.pooling or "mean", spec.normalize, dimensions(spec, folder)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            vector = self.head(_pool(hidden, mask, pooling, side))
            vector = torch.nn.functional.normalize(vector, dim=1) if normalize else vector
            return _cut(vector, kept)

    return Encoder()


def _cut(vectors: "torch.Tensor", kept: int | None) -> "torch.Tensor":
    return vectors if kept is None else vectors[:, :kept]


def _pool(hidden: "torch.Tensor", mask: "torch.Tensor", pooling: str, side: str) -> "torch.Tensor":
    import torch

    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    if (pooling, side) == ("first", "right"):
        return hidden[:, 0]
    places = mask * torch.arange(1, mask.shape[1] + 1)  # 0 is padding
    place = mask.to(torch.int32).argmax(1) if pooling == "first" else places.argmax(1)
    return hidden.gather(1, place.view(-1, 1, 1).expand(-1, 1, hidden.shape[2])).squeeze(1)


def _seeded_backbone(spec: ModelSpec) -> Any:
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    config = AutoConfig.for_model(**dict(spec.architecture or {}))
    return AutoModel.from_config(config, attn_implementation="eager", trust_remote_code=False)  # type: ignore[no-untyped-call]


def _stored_backbone(spec: ModelSpec, folder: Path) -> Any:
    from transformers import AutoModel

    def load() -> Any:
        return AutoModel.from_pretrained(
            str(folder),
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )

    model, info = _loaded(spec, folder, load)
    if missing := sorted(k for k in info["missing_keys"] if not k.startswith("pooler.")):
        raise _half_there(spec, folder, f"weights {missing[:3]} are missing")
    return model


def _head(spec: ModelSpec, hidden_size: int) -> "torch.nn.Module":
    import torch

    if spec.head is None:
        return torch.nn.Identity()
    torch.manual_seed(1)
    head = torch.nn.Linear(hidden_size, spec.head)
    if spec.head_weights is not None:
        _load_head(spec, head, Path(spec.head_weights))
    return head


def _load_head(spec: ModelSpec, head: "torch.nn.Module", path: Path) -> None:
    from safetensors.torch import load_file

    try:
        head.load_state_dict(load_file(path))
    except Exception as error:
        raise ModelError(
            f"head of model {spec.name}: {path} does not fit: {error}; "
            "give a safetensors file with `weight` and `bias`"
        ) from error


def _origin(spec: ModelSpec, folder: Path | None) -> str:
    seeded = ["backbone"] if folder is None else []
    if spec.head is not None and spec.head_weights is None:
        seeded.append("head")
    return f"seeded ({', '.join(seeded)})" if seeded else sources.named(spec)


@dataclass(frozen=True)
class _OwnTokens:
    """A model's own tokenizer.

    Attributes:
        tokenizer: its file's content.
        settings: how it is used.
        ask: tokenise as its library does, to int64 ids and mask, padded to the longest text.
    """

    tokenizer: "Tokenizer"
    settings: TokenSettings
    ask: Callable[[Sequence[str]], tuple[Any, Any]] | None = None


def _own_tokens(spec: ModelSpec, source: "sources.Source") -> _OwnTokens | None:
    """The tokenizer of a folder or of the table; None if there is none, or a pipeline's own."""
    if spec.kind is Kind.SENTENCE_TRANSFORMERS and not spec.tokenizer:
        return None
    given = spec.tokenizer or (str(source) if isinstance(source, Path) else None)
    if given is None or (not spec.tokenizer and not _holds_tokenizer(Path(given))):
        return None
    home = source if isinstance(source, Path) else Path(given)
    if Path(given).is_file():
        tokenizer = open_tokenizer(Path(given))
        return _OwnTokens(tokenizer, settings_at(home, settings_of(Path(given).parent, tokenizer)))
    return _of_library(_load_tokenizer(spec, given), home)


def _pipeline_tokens(
    spec: ModelSpec, source: "sources.Source", encoder: "torch.nn.Module"
) -> _OwnTokens | None:
    """The tokenizer that a sentence-transformers model uses; None for any other model."""
    if spec.kind is not Kind.SENTENCE_TRANSFORMERS or not isinstance(source, Path):
        return None
    model: Any = encoder.model
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        raise ModelError(
            f"model {spec.name}: {source} tokenises by {type(model.tokenizer).__name__}, of which "
            "no tokenizer.json can be made: give one with `tokenizer` in "
            f"[tool.enginegate.models.{spec.name}]"
        )
    own = _of_library(model.tokenizer, source)
    tokenize = getattr(model, "preprocess", model.tokenize)  # its name since 5.3
    limit = limit_of(model.max_seq_length)

    def ask(texts: Sequence[str]) -> tuple[Any, Any]:
        found = tokenize(list(texts))
        return found["input_ids"].numpy(), found["attention_mask"].numpy()

    return _OwnTokens(own.tokenizer, replace(own.settings, limit=limit), ask)


def _of_library(tokenizer: Any, home: Path) -> _OwnTokens:
    """A tokenizer of transformers, with what a model's folder says more."""
    found = TokenSettings(
        limit=limit_of(tokenizer.model_max_length),
        pad_id=tokenizer.pad_token_id or 0,
        pad_token=tokenizer.pad_token or "[PAD]",
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )
    settings = settings_at(home, found)
    how = {"padding": True, "truncation": settings.limit is not None, "return_tensors": "np"}

    def ask(texts: Sequence[str]) -> tuple[Any, Any]:
        asked = tokenizer(list(texts), max_length=settings.limit, **how)
        return asked["input_ids"], asked["attention_mask"]

    has_padding = tokenizer.pad_token is not None
    return _OwnTokens(tokenizer.backend_tokenizer, settings, ask if has_padding else None)


def _save_tokenizer(spec: ModelSpec, own: _OwnTokens, target: Path) -> Path:
    """Write a tokenizer as `tokenizer.json`, and see that it gives what its library gives."""
    own.tokenizer.save(str(target))
    if own.ask is not None:
        texts = read_texts(None)[1][:_COMPARED_TEXTS]
        ids, mask = own.ask(texts)
        found = file_tokenizer(target, ids.shape[1], own.settings)(texts)
        if not (np.array_equal(found.ids, ids) and np.array_equal(found.mask, mask)):
            raise ModelError(
                f"model {spec.name}: its tokenizer.json does not give the tokens that the model "
                "itself takes, so no verdict on it would hold: build it in a `factory`, with its "
                "own `tokenizer`"
            )
    return target


def _holds_tokenizer(folder: Path) -> bool:
    """Asked because transformers makes up an empty tokenizer for a folder that has none."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES)


def _load_tokenizer(spec: ModelSpec, given: str) -> Any:
    from transformers import AutoTokenizer

    try:
        if Path(given).is_dir() and not _holds_tokenizer(Path(given)):
            raise FileNotFoundError(f"none of {', '.join(_TOKENIZER_FILES)} is there")
        trusted = spec.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(given, trust_remote_code=trusted)
        lower_case(tokenizer.backend_tokenizer, Path(given))
    except Exception as error:  # the library raises many kinds
        if "trust_remote_code" in str(error):
            raise _own_code(spec, given) from error
        raise ModelError(f"tokenizer of model {spec.name} not found in {given}: {error}") from error
    return tokenizer


def _write_onnx(encoder: "torch.nn.Module", batch: Batch, path: Path) -> None:
    import torch

    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    arguments = tuple(torch.from_numpy(values) for values in batch.values())
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            arguments,
            str(path),
            input_names=list(batch),
            output_names=[OUTPUT],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _check(
    spec: ModelSpec, encoder: "torch.nn.Module", batch: Batch, path: Path, run_onnx: RunOnnx
) -> float:
    """Largest difference between the file and torch, on two batch sizes and two lengths."""
    kept = batch["attention_mask"][0].nonzero()[0][: len(batch["attention_mask"][0]) // 2]
    shorter = {name: values[:1, kept] for name, values in batch.items()}
    worst = max(
        _difference(encoder, b, path, run_onnx) for b in (batch, shorter, take(batch, slice(3)))
    )
    if not worst <= _TOLERANCE:
        raise ModelError(
            f"the ONNX export of model {spec.name} differs from torch by {worst:.3g} of its "
            f"largest value (limit {_TOLERANCE:g}): it cannot be the reference; "
            "try another torch version"
        )
    return worst


def _difference(encoder: "torch.nn.Module", batch: Batch, path: Path, run_onnx: RunOnnx) -> float:
    import torch

    contiguous: Sequence[Any] = [np.ascontiguousarray(values) for values in batch.values()]
    with torch.inference_mode():
        expected = encoder(*map(torch.from_numpy, contiguous)).numpy()
    found = run_onnx(path, dict(zip(batch, contiguous, strict=True)))
    return float(np.abs(found - expected).max() / np.abs(expected).max())
