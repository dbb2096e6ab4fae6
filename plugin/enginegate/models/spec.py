"""What to deploy: model definitions, shipped or named by the user. No model is loaded here."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from enginegate.errors import OptionError
from enginegate.models.late import Late
from enginegate.models.lengths import AUTO, Lengths, most_tokens
from enginegate.models.nature import Nature
from enginegate.models.tokens import DOCUMENT, QUERY, SEQ_LEN, Prompts, TokenSettings
from enginegate.variants import Precision, checked_name

OWN_CODE = " (may run code of its own: trust_remote_code)"  # after the origin of weights
DROPPED = ": allow_dropped)"  # after the weights that were left out on purpose
TOKEN_ROLES = ("ids", "mask", "positions", "token_types", "zeros", "ones")
ACCEPTED = ("executed", "dominated")
POOLINGS = ("first", "last", "mean")
DEFAULT_POOLING = "mean"  # of a transformers folder that says nothing of it
PACKAGE_PREFIX = "package:"
INT8, BINARY = STORED = ("int8", "binary")  # what vectors may be stored as
STANDARD_INPUTS = MappingProxyType(
    {
        "input_ids": "ids",
        "attention_mask": "mask",
        "token_type_ids": "token_types",
        "position_ids": "positions",
    }
)


class Kind(StrEnum):
    """Where a model comes from; the value is the key that names it in a models table."""

    TRANSFORMERS = "transformers"
    SENTENCE_TRANSFORMERS = "sentence_transformers"
    FACTORY = "factory"
    ONNX = "onnx"


class OutputKind(StrEnum):
    """What a model gives: an embedding of a text, word weights or token vectors; a pair's score."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTI = "multi"
    SCORE = "score"


# The kinds that a key has an effect on, where it is not all of them.
_IN_TORCH = (Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS)
_KINDS_OF: Mapping[str, tuple[Kind, ...]] = MappingProxyType(
    {
        "allow_dropped": _IN_TORCH,
        "architecture": (Kind.TRANSFORMERS,),
        "head": (Kind.TRANSFORMERS,),
        "head_weights": (Kind.TRANSFORMERS,),
        "inputs": (Kind.ONNX,),
        "normalize": (Kind.TRANSFORMERS, Kind.ONNX),
        "output": (Kind.ONNX,),
        "pooling": (Kind.TRANSFORMERS, Kind.ONNX),
        "truncate_dim": _IN_TORCH,
        "truth": (Kind.ONNX,),
        "vocab_size": (Kind.TRANSFORMERS, Kind.FACTORY, Kind.ONNX),
    }
)
# Keys that are about dense embeddings, and of no use for a model that gives something else.
_OF_DENSE = ("pooling", "normalize", "truncate_dim", "head", "dims", "stored")
_IDLE: Mapping[OutputKind, tuple[str, ...]] = MappingProxyType(
    {
        OutputKind.SCORE: (*_OF_DENSE, "prompt"),
        OutputKind.SPARSE: _OF_DENSE,
        OutputKind.MULTI: _OF_DENSE,
    }
)


@dataclass(frozen=True)
class ModelSpec:
    """A model as the user defined it.

    Attributes:
        name: names tests, baselines and report rows. OptionError unless it can name a file.
        kind: how `source` is read.
        source: folder, hub id, `package:NAME` (a wheel that carries `model.zip`),
            `module:function`, or `.onnx` file.
        tokenizer: folder, hub id or `tokenizer.json`; by default the one beside `source`.
        pooling: `first` or `last` token, or `mean` over the attention mask (kinds `transformers`,
            where None is what the model's modules.json says, else `mean`, and `onnx`, for an
            output that has a vector for every token).
        normalize: scale each embedding to length 1 (kinds `transformers`, where None is what
            modules.json says, else false, and `onnx`).
        truncate_dim: keep the first dimensions only (kinds `transformers` and
            `sentence_transformers`); None for what the model's own files say.
        head: width of a Linear layer after pooling, or None (kind `transformers` only).
        head_weights: safetensors file with `weight` and `bias` of the head; else seeded.
        seq_len: tokens per text; longer texts are cut, shorter ones padded; None for 32, or for
            the model's own limit where that is less.
        lengths: instead of `seq_len`, buckets of tokens, each text in the shortest that holds it:
            `auto` for powers of two up to the model's own limit, or a list.
        prompt: what each text begins with, or a table of it by role (`query`, `document`); None
            for the model's own prompts.
        vocab_size: without any tokenizer, words are hashed into 1 .. vocab_size - 1.
        inputs: role (of TOKEN_ROLES) of each ONNX input with a name of its own.
        output: the ONNX output to take, where there are several.
        architecture: configuration to seed when `source` is not at hand; None is an error then.
        limits: accuracy limits by precision that replace the default ones.
        keep: layers to keep in fp32 by precision: names, groups or wildcards.
        accept: by precision, why a person accepts what its engines would be held for: `executed`,
            that something else ran than was requested.
        truth: folder or hub id of what an `.onnx` file was exported from (kind `onnx` only); its
            embeddings are compared with the file's.
        trust_remote_code: run the code that lies beside the weights; every output says so.
        allow_dropped: weights of the checkpoint, names or wildcards, to leave out on purpose.
        dims: numbers of dimensions that its embeddings are used with too, the first ones
            (Matryoshka); each is judged.
        output_kind: what it gives; None for what its own files say, and `dense` for an `.onnx`
            file. `sparse`, `multi` and `score` are for every kind but `factory`.
        stored: what its vectors are stored as (of STORED); a search among such vectors is judged.
    """

    name: str
    kind: Kind
    source: str
    tokenizer: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None
    head: int | None = None
    head_weights: str | None = None
    seq_len: int | None = None
    lengths: Lengths | None = None
    prompt: Prompts = None
    vocab_size: int | None = None
    inputs: Mapping[str, str] = field(default_factory=lambda: STANDARD_INPUTS)
    output: str | None = None
    architecture: Mapping[str, Any] | None = None
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    keep: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accept: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    trust_remote_code: bool = False
    allow_dropped: Sequence[str] = ()
    truth: str | None = None
    dims: Sequence[int] = ()
    stored: Sequence[str] = ()
    output_kind: OutputKind | None = None

    def __post_init__(self) -> None:
        checked_name(self.name)
        if self.seq_len is not None and self.lengths is not None:
            raise OptionError(
                f"{_where(self.name)} has seq_len and lengths: give seq_len for one length of all "
                'texts, or lengths ("auto" or a list) for buckets'
            )

    @property
    def scores(self) -> bool:
        """Tell if it gives a score of a pair of texts, as far as that is known."""
        return self.output_kind == OutputKind.SCORE

    @property
    def sparse(self) -> bool:
        """Tell if it gives weights of words, as far as that is known."""
        return self.output_kind == OutputKind.SPARSE

    @property
    def multi(self) -> bool:
        """Tell if it gives a vector for every token, as far as that is known."""
        return self.output_kind == OutputKind.MULTI

    @property
    def of_library(self) -> bool:
        """Tell if it gives what only a class of sentence-transformers does, whatever names it."""
        return self.scores or self.sparse or self.multi

    @property
    def usual_len(self) -> int:
        """Tokens of a text where neither a table nor a model's files say less; two for a pair."""
        return 2 * SEQ_LEN if self.scores else SEQ_LEN


SHIPPED = MappingProxyType(
    {
        "distilbert-base-cased-96": ModelSpec(
            name="distilbert-base-cased-96",
            kind=Kind.TRANSFORMERS,
            source="distilbert-base-cased",
            pooling="first",
            head=96,
            seq_len=16,
            vocab_size=28996,
            architecture=MappingProxyType({"model_type": "distilbert", "vocab_size": 28996}),
        ),
        "minilm": ModelSpec(
            name="minilm",
            kind=Kind.SENTENCE_TRANSFORMERS,
            source=f"{PACKAGE_PREFIX}all_minilm_l6_v2",
            seq_len=32,
        ),
    }
)


def specs_from(table: Mapping[str, Any], root: Path) -> dict[str, ModelSpec]:
    """The shipped models and those of `[tool.enginegate.models]`; paths are relative to `root`.

    Raises OptionError for an unknown key, a wrong type, or a definition without a source.
    """
    own = {name: _spec(name, _table(name, value), root) for name, value in table.items()}
    return {**SHIPPED, **own}


def _table(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise OptionError(f"{_where(name)} is not a table: name a model source in it")
    return value


def _spec(name: str, table: Mapping[str, Any], root: Path) -> ModelSpec:
    _refuse_unknown(name, table)
    settings = {key: value for key, value in table.items() if key not in set(Kind)}
    paths = [key for key in ("tokenizer", "head_weights", "truth") if key in settings]
    settings |= {k: _named(f"{_where(name)}: {k}", settings[k], root, _local) for k in paths}
    if "lengths" in settings:
        settings = {"seq_len": None, **settings}  # a shipped model has one
    base = SHIPPED.get(name) or ModelSpec(name=name, kind=Kind.ONNX, source="")
    spec = replace(base, **{**_source(name, table, base, root), **settings})
    _refuse_foreign(name, table, spec)
    _refuse_bad_values(spec)
    return spec


def _refuse_unknown(name: str, table: Mapping[str, Any]) -> None:
    known = {f.name for f in fields(ModelSpec)} - {"name", "kind", "source"} | set(Kind)
    if unknown := sorted(set(table) - known):
        raise OptionError(f"{_where(name)} has unknown keys {unknown}: use {sorted(known)}")


def _refuse_foreign(name: str, table: Mapping[str, Any], spec: ModelSpec) -> None:
    """Raise OptionError for keys that have no effect on a model of this kind."""
    own = {f.name for f in fields(ModelSpec) if spec.kind in _KINDS_OF.get(f.name, Kind)}
    if foreign := sorted(set(table) - own - set(Kind)):
        others = (f"{key} is for {' and '.join(_KINDS_OF[key])}" for key in foreign)
        taken = sorted(own - {"name", "kind", "source"})
        raise OptionError(
            f"{_where(name)}: {', '.join(others)}; remove it, as a model named by `{spec.kind}` "
            f"takes {', '.join(taken)}"
        )
    _refuse_idle(spec)


def _refuse_idle(spec: ModelSpec) -> None:
    """Raise OptionError for keys that have an effect only beside others."""
    headless = spec.head_weights is not None and spec.head is None
    _require(spec, "head_weights", not headless, "of use without `head`, the width of it")
    refuse_for_kind(spec)
    has_code = spec.kind is not Kind.ONNX or spec.truth is not None
    _require(
        spec,
        "trust_remote_code",
        has_code or not spec.trust_remote_code,
        "of use for an .onnx file without `truth`: it runs no code",
    )


def refuse_for_kind(spec: ModelSpec) -> None:
    """Raise OptionError for keys that do not fit what it gives, and where it cannot give that."""
    if spec.output_kind is None or spec.output_kind not in _IDLE:
        return
    judged = spec.kind is not Kind.FACTORY and spec.architecture is None
    said = "for a model of that kind: name its folder, hub id or .onnx file"
    _require(spec, "output_kind", judged, said)
    for key in _IDLE[OutputKind(spec.output_kind)]:
        idle = not getattr(spec, key)
        said = f"of use for a model that gives {spec.output_kind} outputs: it is about dense ones"
        _require(spec, key, idle, said)


def _source(name: str, table: Mapping[str, Any], base: ModelSpec, root: Path) -> dict[str, Any]:
    given = [kind for kind in Kind if kind in table]
    if len(given) > 1 or (not given and not base.source):
        raise OptionError(f"{_where(name)} needs exactly one of {', '.join(Kind)}")
    if not given:
        return {}
    found = _onnx_file if given[0] is Kind.ONNX else _local
    key, source = f"{_where(name)}: {given[0]}", table[given[0]]
    return {"kind": given[0], "source": _named(key, source, root, found), "architecture": None}


def _onnx_file(path: Path, _name: str) -> str:
    """The file, or the link to it, which may have the weights beside it."""
    return os.path.abspath(path)  # noqa: PTH100 - follows no link


def _local(path: Path, name: str) -> str:
    """The absolute path of what is there; a hub id or the like as it is."""
    return str(path.resolve()) if path.exists() else name


def hub_blobs(path: Path) -> Path | None:
    """Where the hub's cache keeps what `path`, in a snapshot of a model, is a link to."""
    for folder in path.parents:
        if folder.name == "snapshots" and folder.parent.name.startswith("models--"):
            return (folder.parent / "blobs").resolve()
    return None


def _named(key: str, name: object, root: Path, found: Callable[[Path, str], str]) -> str:
    """What `found` makes of a name, relative to `root`.

    Raises OptionError for what no file and no model can be named.
    """
    if not isinstance(name, str) or not name.strip():
        raise OptionError(f"{key} = {name!r} is not a name")
    try:
        path = root / Path(name).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        return found(path, name)
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, a home of nobody
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"{key} = {name[:60]!r}… cannot be a file or a model: {reason}") from None


def _refuse_bad_values(spec: ModelSpec) -> None:
    pooling_fits = spec.pooling is None or spec.pooling in POOLINGS
    _require(spec, "pooling", pooling_fits, f"one of {', '.join(POOLINGS)}")
    normalize_fits = spec.normalize is None or isinstance(spec.normalize, bool)
    _require(spec, "normalize", normalize_fits, "true or false")
    seq_len_fits = spec.seq_len is None or _is_count(spec.seq_len, 2)
    _require(spec, "seq_len", seq_len_fits, "a whole number, 2 or more")
    said = '"auto" or a list of whole numbers, 2 or more, each once'
    _require(spec, "lengths", _are_lengths(spec.lengths), said)
    _require(
        spec, "prompt", _is_prompt(spec.prompt), f"a text, or a table by {QUERY} and {DOCUMENT}"
    )
    truncates = spec.truncate_dim is None or _is_count(spec.truncate_dim, 1)
    _require(spec, "truncate_dim", truncates, "a whole number")
    _require(spec, "head", spec.head is None or _is_count(spec.head, 1), "a whole number")
    vocab_fits = spec.vocab_size is None or _is_count(spec.vocab_size, 2)
    _require(spec, "vocab_size", vocab_fits, "a whole number, 2 or more")
    _require(spec, "dims", _are_dims(spec.dims), "a list of whole numbers, each once")
    stored_fits = _are_layers(spec.stored) and set(spec.stored) <= set(STORED)
    _require(spec, "stored", stored_fits, f"a list of {', '.join(STORED)}")
    kind_fits = spec.output_kind is None or spec.output_kind in set(OutputKind)
    _require(spec, "output_kind", kind_fits, f"one of {', '.join(OutputKind)}")
    roles_fit = isinstance(spec.inputs, Mapping) and set(spec.inputs.values()) <= set(TOKEN_ROLES)
    _require(spec, "inputs", roles_fit, f"a table of roles {', '.join(TOKEN_ROLES)}")
    limits_fit = _by_precision(spec.limits, _are_limits)
    _require(spec, "limits", limits_fit, "a table of numbers for each precision")
    accept_fits = _by_precision(spec.accept, _are_reasons)
    _require(spec, "accept", accept_fits, f"a table of {', '.join(ACCEPTED)} with why, a precision")
    trust_fits = isinstance(spec.trust_remote_code, bool)
    _require(spec, "trust_remote_code", trust_fits, "true or false")
    _require(spec, "allow_dropped", _are_layers(spec.allow_dropped), "a list of weights")
    keep_fits = _by_precision(spec.keep, _are_layers)
    _require(spec, "keep", keep_fits, "a table with a list of layers a precision")


def _by_precision(value: object, fits: Callable[[Any], bool]) -> bool:
    if not isinstance(value, Mapping) or not set(value) <= set(Precision):
        return False
    return all(map(fits, value.values()))


def _are_limits(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(n, int | float) for n in value.values())


def _are_layers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(layer, str) for layer in value)


def _are_dims(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(set(map(str, value))) < len(value):
        return False
    return all(_is_count(dim, 1) for dim in value)


def _are_lengths(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return value in (None, AUTO)
    each_once = len(set(map(str, value))) == len(value) > 0
    return each_once and all(_is_count(length, 2) for length in value)


def _are_reasons(value: object) -> bool:
    if not isinstance(value, Mapping) or not set(value) <= set(ACCEPTED):
        return False
    return all(isinstance(why, str) and why.strip() for why in value.values())


def _is_prompt(value: object) -> bool:
    if not isinstance(value, Mapping):
        return value is None or isinstance(value, str)
    return set(value) <= {QUERY, DOCUMENT} and all(isinstance(said, str) for said in value.values())


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(spec: ModelSpec, key: str, fits: bool, wanted: str) -> None:  # noqa: FBT001
    if not fits:
        value = getattr(spec, key)
        raise OptionError(f"{_where(spec.name)}: {key} = {value!r} is not {wanted}")


def _where(name: str) -> str:
    return f"[tool.enginegate.models.{name}]"


@dataclass(frozen=True)
class Exported:
    """A model as every engine and the reference take it: one ONNX file with named inputs.

    Attributes:
        spec: its definition.
        onnx: the file; dynamic batch and sequence axes.
        sha256: hash of the file with its external data.
        weights: where they came from; starts with `seeded` if any weight is, ends with OWN_CODE
            if code beside them may run.
        tokenizer: its `tokenizer.json`, or None where words are hashed.
        inputs: ONNX input name to role.
        output: the ONNX output that is the embedding, float [batch, dim], or [batch, tokens, dim]
            of a vector for every token.
        note: what the store had to say, or what was taken as usual; empty for nothing.
        int32: the inputs that take int32; all others take int64.
        nature: what the file was before anything was made of it.
        tokens: what the model's own files say of its tokens.
        overruled: what its table says otherwise of its embeddings than its own files do.
        first_position: what an input of positions has for a first token.
        late: which tokens a search uses; None where it gives no vector for every token.
    """

    spec: ModelSpec
    onnx: Path
    sha256: str
    weights: str
    tokenizer: Path | None
    inputs: Mapping[str, str]
    output: str
    note: str = ""
    int32: frozenset[str] = frozenset()
    nature: Nature = field(default_factory=Nature)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    overruled: tuple[str, ...] = ()
    first_position: int = 0
    late: Late | None = None

    @property
    def seq_len(self) -> int:
        """Tokens per text; of buckets those of the longest that there may be."""
        if self.spec.lengths:
            longest = self.tokens.longest or self.spec.usual_len
            return most_tokens(self.spec.lengths, longest) or longest
        return self.tokens.seq_len(self.spec.seq_len, self.spec.usual_len)

    @property
    def prompts(self) -> dict[str, str]:
        """What texts begin with, by role; none for a role without a prompt."""
        return self.tokens.prompts_with(self.spec.prompt)
