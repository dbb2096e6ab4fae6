"""An `.onnx` file that is a model already: read, checked, and made what every runtime takes."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from enginegate.cache import Store
from enginegate.errors import ModelError
from enginegate.files import sha256_of, sha256_of_json
from enginegate.models.nature import Nature, has_halves, messages, read_nature
from enginegate.models.onnx_file import save_onnx
from enginegate.models.spec import (
    POOLINGS,
    STANDARD_INPUTS,
    TOKEN_ROLES,
    Exported,
    ModelSpec,
    hub_blobs,
)

_RECIPE = 1  # raise when the same file is rewritten otherwise
_TOKENIZER = "tokenizer.json"
_INT32, _INT64 = 6, 7  # of TensorProto.DataType
_TOKENS_RANK = 3  # [batch, tokens, width]
_HANDING_ON = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand"})
_BY_MASK = {"last": "the last token", "mean": "the mean"}  # poolings that need a mask
_OPSET_OF_LAST = 11  # which has CumSum
_NO_PLACE = ("zeros", "ones", "token_types")  # roles that are no positions


@dataclass(frozen=True)
class _File:
    """A model's file as it was found.

    Attributes:
        spec: what the user said of it.
        path: of the file; a link only where its weights lie beside the link.
        graph: its content without external data.
        external: names of the files with its weights.
    """

    spec: ModelSpec
    path: Path
    graph: Any
    external: tuple[str, ...]

    @property
    def inputs(self) -> Mapping[str, int]:
        """What a caller gives, by element type: the inputs that are no weights."""
        from enginegate.models.rewrite import weights_of

        given = (v for v in self.graph.graph.input if v.name not in weights_of(self.graph))
        return {value.name: value.type.tensor_type.elem_type for value in given}

    @property
    def table(self) -> str:
        """Where to say more of it."""
        return f"[tool.enginegate.models.{self.spec.name}]"


@dataclass(frozen=True)
class _Changes:
    """What a graph needs so that every runtime takes it and gives embeddings.

    Attributes:
        inputs: weights are not among the inputs.
        output: the output to keep, of several.
        pooling: what its tokens are pooled by; None where they are.
        mask: the input that says what is padding.
        normalize: scale each embedding to length 1.
        widen: make 16-bit floats fp32.
    """

    inputs: bool
    output: str | None
    pooling: str | None
    mask: str | None
    normalize: bool
    widen: bool

    def named(self, output: str) -> str:
        """The name of the output, which is another one where something follows the file's own."""
        if not self.puts_in:
            return output
        return f"{output}_{'normalized' if self.pooling is None else 'pooled'}"

    @property
    def puts_in(self) -> bool:
        """Tell if another output follows the file's own."""
        return self.pooling is not None or self.normalize

    def __bool__(self) -> bool:
        return self.inputs or self.output is not None or self.puts_in or self.widen


def ready_onnx(spec: ModelSpec, store: Store) -> Exported:
    """A model that is an `.onnx` file already, used where it lies unless it must be rewritten.

    Raises ModelError if it cannot be read, or needs to be explained in its table.
    """
    file = _read(spec)
    files = [file.path, *(_external_file(file.path, name) for name in file.external)]
    sha256 = sha256_of_json([sha256_of(found) for found in files])
    nature, roles = read_nature(file.graph), _roles(file)
    output = _output(file)
    changes = _changes(file, nature, roles, output)
    key = {"recipe": _RECIPE, "sha256": sha256, "names": [file.path.name, *file.external]}
    key |= {"changes": asdict(changes)}
    return Exported(
        spec=spec,
        onnx=_rewritten(file, changes, key, store) if changes else _unlinked(file, sha256, store),
        sha256=sha256_of_json(key) if changes else sha256,
        weights=f"from {file.path.name}",
        tokenizer=_tokenizer(file),
        inputs=roles,
        output=changes.named(output),
        int32=frozenset(name for name, kind in file.inputs.items() if kind == _INT32),
        nature=nature,
    )


def _read(spec: ModelSpec) -> _File:
    """The file; what a link leads to, unless its weights lie beside the link."""
    given = Path(spec.source)
    graph = _read_graph(given)
    external = _external_names(graph)
    beside = external and all(_is_file(given.parent / name) for name in external)
    path = given if beside or hub_blobs(given) else given.resolve()
    return _File(spec, path, graph, external)


def _read_graph(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise ModelError(f"model file {path} does not exist: check `onnx` in pyproject.toml")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own error types differ between its versions
        raise ModelError(f"{path} is not an ONNX model: {error}; export it again") from error


def _external_names(graph: Any) -> tuple[str, ...]:
    tensors = messages(graph, "TensorProto")
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return tuple(sorted({entry.value for entry in entries if entry.key == "location"}))


def _external_file(path: Path, name: str) -> Path:
    """The file of weights that a model names. Raises ModelError if it is not the model's own."""
    given, file = PureWindowsPath(name), path.parent / name  # which knows both kinds of slashes
    if given.anchor or given.drive or ".." in given.parts:
        raise _foreign(path, name, "is not a path inside the model's folder")
    if not _is_file(file):
        raise ModelError(f"{path} keeps weights in {file}, which does not exist")
    homes = [path.parent.resolve(), hub_blobs(path)]
    if given.name == name:  # it stands beside the model, and may lie beside what that leads to
        homes.append(path.resolve().parent)
    if not any(home and file.resolve().is_relative_to(home) for home in homes):
        raise _foreign(path, name, f"leads out of the model's folder to {file.resolve()}")
    return file


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no disk takes
        return False


def _foreign(path: Path, name: str, why: str) -> ModelError:
    return ModelError(
        f"{path} keeps weights in {name!r}, which {why}: put the file beside the model, or save "
        "the model again with onnx.save(..., save_as_external_data=True)"
    )


def _roles(file: _File) -> dict[str, str]:
    """The role of every input. Raises ModelError for one that is unknown or cannot be given."""
    known, inputs = file.spec.inputs, file.inputs
    if unknown := [name for name in inputs if name not in known]:
        raise ModelError(
            f"{file.path} has inputs {unknown} of unknown role: say {', '.join(TOKEN_ROLES)} for "
            f"each under `inputs` in {file.table}"
        )
    if lacking := sorted(set(known) - set(inputs) - set(STANDARD_INPUTS)):
        raise ModelError(
            f"{file.path} has no inputs {lacking}, which `inputs` in {file.table} names: remove "
            f"them; its inputs are {sorted(inputs)}"
        )
    if others := [name for name, kind in inputs.items() if kind not in (_INT32, _INT64)]:
        raise ModelError(
            f"{file.path} has inputs {others} that are neither int64 nor int32: export it again "
            "with whole numbers for tokens, mask and positions"
        )
    roles = {name: known[name] for name in inputs}
    for name, role in roles.items():
        if role in _NO_PLACE and _are_positions(file.graph, name):
            raise ModelError(
                f"{file.path}: input {name!r} takes the positions of the tokens, and {role} would "
                f'put them all at one: say {name} = "positions" under `inputs` in {file.table}'
            )
    return roles


def _are_positions(graph: Any, name: str) -> bool:
    """Tell if an input is called positions, or looks up in a table that is."""
    return "position" in name.lower() or any("position" in t.lower() for t in _tables(graph, name))


def _tables(graph: Any, name: str) -> Iterator[str]:
    """Names of the weights that an input is an index of."""
    reached = {name}
    for node in graph.graph.node:
        if node.op_type in _HANDING_ON and node.input[0] in reached:
            reached.update(node.output)
        if node.op_type == "Gather" and node.input[1] in reached:
            yield node.input[0]


def _output(file: _File) -> str:
    names: list[str] = [value.name for value in file.graph.graph.output]
    wanted = file.spec.output or (names[0] if len(names) == 1 else None)
    if wanted is None or wanted not in names:
        raise ModelError(
            f"{file.path} has outputs {names}: say which is the embedding with `output` in "
            f"{file.table}"
        )
    return wanted


def _changes(file: _File, nature: Nature, roles: Mapping[str, str], output: str) -> _Changes:
    graph = file.graph.graph
    return _Changes(
        inputs=len(file.inputs) < len(graph.input),
        output=output if len(graph.output) > 1 else None,
        pooling=_pooling(file, roles, output),
        mask=_mask(roles),
        normalize=bool(file.spec.normalize),
        widen=has_halves(file.graph) and not nature.is_quantised,
    )


def _mask(roles: Mapping[str, str]) -> str | None:
    return next((name for name, role in roles.items() if role == "mask"), None)


def _pooling(file: _File, roles: Mapping[str, str], output: str) -> str | None:
    """The pooling that the file lacks and its table has. Raises ModelError where they disagree."""
    from enginegate.models.onnx_file import opset_of

    pooling, rank = file.spec.pooling, _rank(file.graph, output)
    if file.spec.multi:
        _require_tokens(file, output, rank)
        return None
    if pooling is None and rank == _TOKENS_RANK:
        raise ModelError(
            f"output {output!r} of {file.path} has a vector for every token: say `pooling` "
            f"({', '.join(POOLINGS)}) in {file.table}, or name its pooled output with `output`"
        )
    if pooling is not None and rank not in (_TOKENS_RANK, None):
        raise ModelError(
            f"output {output!r} of {file.path} is pooled already, having {rank} dimensions: remove "
            f"`pooling` from {file.table}"
        )
    if pooling in _BY_MASK and _mask(roles) is None:
        raise ModelError(
            f"{file.path} cannot be pooled by {_BY_MASK[pooling]}: none of its inputs is the "
            f"mask that says what is padding; name it under `inputs` in {file.table}"
        )
    if pooling == "last" and opset_of(file.graph) < _OPSET_OF_LAST:
        raise ModelError(
            f"{file.path} cannot be pooled by {_BY_MASK[pooling]}: it is of opset "
            f"{opset_of(file.graph)}, and {_OPSET_OF_LAST} is needed; export it again"
        )
    return pooling


def _require_tokens(file: _File, output: str, rank: int | None) -> None:
    if rank not in (_TOKENS_RANK, None):
        raise ModelError(
            f"output {output!r} of {file.path} has {rank} dimensions, and a vector for every token "
            f"has {_TOKENS_RANK}: name that output with `output` in {file.table}"
        )


def _rank(graph: Any, output: str) -> int | None:
    """Number of dimensions of an output; None where the file does not say."""
    (value,) = (value for value in graph.graph.output if value.name == output)
    typed = value.type.tensor_type
    return len(typed.shape.dim) if typed.HasField("shape") else None


def _rewritten(file: _File, changes: _Changes, key: Mapping[str, Any], store: Store) -> Path:
    """A copy of the file, changed, with its weights beside it."""

    def write(folder: Path) -> Mapping[str, Any]:
        target = _copied(file, folder)
        _write_changed(target, changes)
        return {}

    return store.get_or_build("ready", key, write).folder / "model" / file.path.name


def _write_changed(path: Path, changes: _Changes) -> None:
    """Change a model's file where it lies."""
    import onnx

    from enginegate.models import rewrite

    model = onnx.load(str(path), load_external_data=changes.widen)
    if changes.inputs:
        rewrite.drop_weights_among_inputs(model)
    if changes.output:
        rewrite.keep_output(model, changes.output)
    if changes.widen:
        rewrite.widen(model)
    if changes.puts_in:
        name = changes.named(model.graph.output[0].name)
        rewrite.pool(model, name, changes.pooling, changes.mask, normalize=changes.normalize)
    if not changes.widen:
        path.write_bytes(model.SerializeToString())
        return
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    save_onnx(model, path)


def _unlinked(file: _File, sha256: str, store: Store) -> Path:
    """The file, or a copy where weights are links, which the runtimes do not follow."""
    home = file.path.parent.resolve()
    if all((home / name).resolve() == home / name for name in file.external):
        return file.path

    def copy(folder: Path) -> Mapping[str, Any]:
        _copied(file, folder)
        return {}

    key = {"sha256": sha256, "names": [file.path.name, *file.external]}
    return store.get_or_build("linked", key, copy).folder / "model" / file.path.name


def _copied(file: _File, folder: Path) -> Path:
    """The file and its weights, copied into a folder."""
    for name in (file.path.name, *file.external):
        (folder / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path.parent / name, folder / "model" / name)
    return folder / "model" / file.path.name


def _tokenizer(file: _File) -> Path | None:
    spec = file.spec
    if spec.tokenizer is None:
        beside = (folder / _TOKENIZER for folder in (Path(spec.source).parent, file.path.parent))
        return next((found for found in beside if found.is_file()), None)
    given = Path(spec.tokenizer)
    found = given / _TOKENIZER if given.is_dir() else given
    if not found.is_file():
        raise ModelError(f"tokenizer of model {spec.name} not found: {found} does not exist")
    return found
