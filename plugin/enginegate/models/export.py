"""From a model definition to a checked ONNX file. The one module that imports torch."""

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from enginegate.cache import Store
from enginegate.errors import ModelError
from enginegate.files import parse_json, read_text, sha256_of
from enginegate.models import sources
from enginegate.models.ready import ready_onnx
from enginegate.models.spec import DEFAULT_POOLING, OWN_CODE, Exported, Kind, ModelSpec
from enginegate.models.workload import (
    Batch,
    Tokenize,
    file_tokenizer,
    hashed_tokenizer,
    read_texts,
    take,
)

if TYPE_CHECKING:
    import torch

OUTPUT = "sentence_embedding"  # an output named `embedding` collides inside torch's exporter
_TOLERANCE = 1e-4  # of the largest value; fp32 on two runtimes agrees to about 1e-6
_TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (_TOKENIZER, "vocab.txt", "vocab.json", "*.model")

RunOnnx = Callable[[Path, Batch], npt.NDArray[np.float32]]


def export_model(spec: ModelSpec, store: Store, run_onnx: RunOnnx) -> Exported:
    """The model's ONNX file, exported once per content and compared with torch before use.

    `run_onnx(file, batch)` runs the file in fp32 and returns [batch, dim]. Raises ModelError if
    the model is missing, half there, cannot be exported, or its export differs from torch.
    """
    if spec.kind is Kind.ONNX:
        return ready_onnx(spec, store)
    source = sources.locate(spec, store)
    entry = store.get_or_build(
        "model",
        sources.content_key(spec, source),
        lambda folder: _export(spec, source, folder, run_onnx),
    )
    tokenizer = entry.folder / _TOKENIZER
    return Exported(
        spec=spec,
        onnx=entry.folder / "model.onnx",
        sha256=entry.properties["sha256"],
        weights=entry.properties["weights"] + (OWN_CODE if spec.trust_remote_code else ""),
        tokenizer=tokenizer if tokenizer.exists() else None,
        inputs={"input_ids": "ids", "attention_mask": "mask"},
        output=OUTPUT,
        note=entry.note,
    )


def tokenize_with(spec: ModelSpec, tokenizer: Path | None) -> Tokenize:
    """The model's own tokenizer, or hashed words where it has none but a vocabulary size."""
    if tokenizer is not None:
        return file_tokenizer(tokenizer, spec.seq_len)
    if spec.vocab_size is None:
        raise ModelError(
            f"model {spec.name} has no tokenizer: give `tokenizer` (a folder or tokenizer.json), "
            f"or `vocab_size` to hash words, in [tool.enginegate.models.{spec.name}]"
        )
    return hashed_tokenizer(spec.vocab_size, spec.seq_len)


def _export(
    spec: ModelSpec, source: "sources.Source", folder: Path, run_onnx: RunOnnx
) -> Mapping[str, Any]:
    encoder, weights = _encoder(spec, source)
    tokenizer = _save_tokenizer(spec, source, folder)
    ids, mask, _ = tokenize_with(spec, tokenizer)(read_texts(None)[1][:4])
    batch = {"input_ids": ids, "attention_mask": mask}
    path = folder / "model.onnx"
    try:
        _write_onnx(encoder, batch, path)
    except Exception as error:  # the exporter raises many kinds
        raise ModelError(f"model {spec.name} cannot be exported to ONNX: {error}") from error
    difference = _check(spec, encoder, batch, path, run_onnx)
    return {"sha256": sha256_of(path), "weights": weights, "max_abs_to_torch": difference}


def _encoder(spec: ModelSpec, source: "sources.Source") -> tuple["torch.nn.Module", str]:
    """A module from (ids, mask), int64 [batch, seq], to float32 [batch, dim]; its origin."""
    if source is not None and not isinstance(source, Path):
        return source.eval().float(), f"from factory {spec.source}"
    if spec.kind is Kind.SENTENCE_TRANSFORMERS:
        if source is None:
            raise ModelError(
                f"model {spec.name}: {spec.source!r} holds no weights: name its folder"
            )
        return _sentence_transformer(spec, source), sources.named(spec)
    return _pooled(spec, source)


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

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            features = self.model({"input_ids": ids, "attention_mask": mask})
            return features["sentence_embedding"]  # type: ignore[no-any-return]

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


def _pooled(spec: ModelSpec, folder: Path | None) -> tuple["torch.nn.Module", str]:
    import torch

    backbone = _seeded_backbone(spec) if folder is None else _stored_backbone(spec, folder)
    head = _head(spec, backbone.config.hidden_size)
    pooling, normalize = spec.pooling or DEFAULT_POOLING, spec.normalize

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            vector = self.head(_pool(hidden, mask, pooling))
            return torch.nn.functional.normalize(vector, dim=1) if normalize else vector

    return Encoder().eval().float(), _origin(spec, folder)


def _pool(hidden: "torch.Tensor", mask: "torch.Tensor", pooling: str) -> "torch.Tensor":
    if pooling == "first":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


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


def _save_tokenizer(spec: ModelSpec, source: "sources.Source", folder: Path) -> Path | None:
    """The model's own tokenizer as `tokenizer.json` in `folder`; None if it has none."""
    given = spec.tokenizer or (str(source) if isinstance(source, Path) else None)
    if given is None or (not spec.tokenizer and not _holds_tokenizer(Path(given))):
        return None
    target = folder / _TOKENIZER
    if Path(given).is_file():
        target.write_bytes(Path(given).read_bytes())
    else:
        _convert_tokenizer(spec, given, target)
    return target


def _holds_tokenizer(folder: Path) -> bool:
    """Asked because transformers makes up an empty tokenizer for a folder that has none."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES)


def _convert_tokenizer(spec: ModelSpec, given: str, target: Path) -> None:
    from transformers import AutoTokenizer

    try:
        if Path(given).is_dir() and not _holds_tokenizer(Path(given)):
            raise FileNotFoundError(f"none of {', '.join(_TOKENIZER_FILES)} is there")
        trusted = spec.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(given, trust_remote_code=trusted)
        tokenizer.backend_tokenizer.save(str(target))
    except Exception as error:  # the library raises many kinds
        if "trust_remote_code" in str(error):
            raise _own_code(spec, given) from error
        raise ModelError(f"tokenizer of model {spec.name} not found in {given}: {error}") from error


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
    shorter = {name: values[:1, : spec.seq_len // 2] for name, values in batch.items()}
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
