"""From a model definition to a checked ONNX file. The one module that imports torch."""

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from enginegate.cache import Entry, Store
from enginegate.errors import ModelError
from enginegate.files import reading
from enginegate.machine import installed_version
from enginegate.models import sources
from enginegate.models.checkpoints import (
    Taken,
    as_found,
    backbones,
    check_folder,
    follows_modules,
    read_json,
    refuse_idle,
    said_of,
    weight_names,
)
from enginegate.models.late import (
    PYLATE_DENSE,
    Late,
    aligned,
    late_at,
    raw_outputs,
    token_vectors,
)
from enginegate.models.lengths import Batch, most_tokens
from enginegate.models.modules import LIBRARY, read_modules
from enginegate.models.onnx_file import beside, is_large, sha256_of_files
from enginegate.models.pooling import (
    dimensions,
    is_pipeline,
    leaves_prompt_out,
    otherwise,
    own_modules,
)
from enginegate.models.ready import ready_onnx
from enginegate.models.spec import (
    DEFAULT_POOLING,
    OWN_CODE,
    STANDARD_INPUTS,
    Exported,
    Kind,
    ModelSpec,
)
from enginegate.models.splade import is_splade, splade_weights
from enginegate.models.static import is_static, static_features, static_tokenizer, static_tokens
from enginegate.models.tokens import (
    DOCUMENT,
    QUERY,
    TEXT,
    Encoded,
    Text,
    Tokenize,
    TokenSettings,
    file_tokenizer,
    first_position,
    in_buckets,
    limit_of,
    lower_case,
    open_tokenizer,
    overruled,
    positions_of,
    read_object,
    settings_at,
    settings_from,
    settings_of,
)
from enginegate.models.workload import hashed_tokenizer, read_texts, take

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

OUTPUT = "sentence_embedding"  # an output named `embedding` collides inside torch's exporter
_TOLERANCE = 1e-4  # of the largest value; fp32 on two runtimes agrees to about 1e-6
_FILE = "model.onnx"
_TOKENIZER = "tokenizer.json"
_TYPES = "token_type_ids"
_INPUTS = ("input_ids", "attention_mask")
_COMPARED_TEXTS = 64
_TOKENIZER_FILES = (_TOKENIZER, "vocab.txt", "vocab.json", "*.model")

_LONG_BYTES = 250_000_000  # of weights: from there on an export takes half a minute or more
_S_PER_GB = 60  # of weights; two cores with nothing else to do

RunOnnx = Callable[[Path, Batch], npt.NDArray[np.float32]]
Say = Callable[[str], None] | None


def export_model(spec: ModelSpec, store: Store, run_onnx: RunOnnx, say: Say = None) -> Exported:
    """The model's ONNX file, exported once per content and compared with torch before use.

    `run_onnx(file, batch)` runs the file in fp32 and returns [batch, dim]; `say` is told of an
    export that takes long, as it begins. Raises ModelError if
    the model is missing, half there, cannot be exported, or its export differs from torch.
    """
    if spec.kind is Kind.ONNX:
        return _ready(ready_onnx(spec, store), store)
    source = sources.locate(spec, store)
    spec = as_found(spec, source)
    _check_length(spec, _positions(spec, source))
    entry = _entry(spec, source, store, run_onnx, say)
    given = entry.folder / _TOKENIZER if (entry.folder / _TOKENIZER).exists() else None
    tokens = TokenSettings(**entry.properties["tokens"])
    _check_limit(spec, tokens)
    if tokens.prompts_with(spec.prompt) and (entry.properties["leaves_prompt_out"] or spec.scores):
        raise _unpooled_prompt(spec)
    return Exported(
        spec=spec,
        onnx=entry.folder / _FILE,
        sha256=entry.properties["sha256"],
        weights=entry.properties["weights"] + (OWN_CODE if spec.trust_remote_code else ""),
        tokenizer=given,
        inputs={name: STANDARD_INPUTS[name] for name in entry.properties.get("inputs", _INPUTS)},
        output=OUTPUT,
        note=entry.note,
        tokens=tokens,
        overruled=(*overruled(tokens, spec.seq_len, spec.prompt), *_overruled(spec, source)),
        late=_late(spec, tokens, source, given) if spec.multi else None,
    )


def _late(
    spec: ModelSpec, tokens: TokenSettings, home: "sources.Source", tokenizer: Path | None
) -> Late:
    """Which tokens a search uses, as the files of `home` say it. Raises ModelError."""
    if tokenizer is None or not isinstance(home, Path):
        raise ModelError(
            f"model {spec.name}: a search leaves out tokens by its tokenizer, and it has none: "
            f"give `tokenizer` in [tool.enginegate.models.{spec.name}]"
        )
    if spec.lengths:
        raise ModelError(
            f"model {spec.name}: `lengths` is not offered for a model with a vector for every "
            f"token: say `seq_len` instead in [tool.enginegate.models.{spec.name}]"
        )
    late = late_at(home, open_tokenizer(tokenizer))
    _check_filled(spec, tokens, late)
    return late


def _check_filled(spec: ModelSpec, tokens: TokenSettings, late: Late) -> None:
    seq_len = tokens.seq_len(spec.seq_len, spec.usual_len)
    if late.fill and late.fill > seq_len:
        raise ModelError(
            f"model {spec.name}: its queries are filled up to {late.fill} tokens, and texts have "
            f"{seq_len}: say seq_len = {late.fill} or more in [tool.enginegate.models.{spec.name}]"
        )
    if late.fill and tokens.padding_side != "right":
        raise ModelError(
            f"model {spec.name}: its queries are filled up and padded on the left, which is not "
            "judged: pad on the right"
        )


def _entry(
    spec: ModelSpec, source: "sources.Source", store: Store, run_onnx: RunOnnx, say: Say
) -> Entry:
    """The export of the source's content; of a factory the one that does what its module does.

    No key tells what a module computes, which constants, attributes and helpers of its decide. So
    an export that differs from the live module is another model's, and the next number is tried.
    """
    key = sources.content_key(spec, source)
    for number in itertools.count():
        entry = store.get_or_build(
            "model",
            {**key, "number": number} if number else key,
            lambda folder: _export(spec, source, folder, run_onnx, say),
        )
        if spec.kind is not Kind.FACTORY or entry.built or _is_alike(spec, source, entry, run_onnx):
            break
    return entry


def _is_alike(spec: ModelSpec, source: "sources.Source", entry: Entry, run_onnx: RunOnnx) -> bool:
    """Tell if an export does what the live module does, on two texts."""
    encoder, _ = _encoder(spec, source)
    tokenizer = entry.folder / _TOKENIZER
    tokens = TokenSettings(**entry.properties["tokens"])
    tokenize = _tokenizer(spec, tokenizer if tokenizer.exists() else None, tokens)
    batch = _first_texts(spec, tokenize, 2)
    return _difference(encoder, batch, entry.folder / _FILE, run_onnx) <= _TOLERANCE


def _first_texts(
    spec: ModelSpec, tokenize: Tokenize, count: int, inputs: Sequence[str] = _INPUTS
) -> Batch:
    encoded = tokenize(_texts(spec, count))
    roles = {"input_ids": encoded.ids, "attention_mask": encoded.mask, _TYPES: encoded.types}
    return {name: roles[name] for name in inputs}


def _texts(spec: ModelSpec, count: int) -> Sequence[Text]:
    """The first texts of the default corpus, or pairs of them and of the next ones."""
    texts = read_texts(None)[1]
    return list(zip(texts[:count], texts[count:], strict=False)) if spec.scores else texts[:count]


def _ready(model: Exported, store: Store) -> Exported:
    """A ready file, with what the files beside its tokenizer say."""
    if model.spec.trust_remote_code:
        model = replace(model, weights=model.weights + OWN_CODE)
    if "positions" in model.inputs.values():
        model = _placed(model, store)
    if model.tokenizer is None:
        return replace(model, late=_late_of_ready(model))
    tokens = settings_of(model.tokenizer.parent, open_tokenizer(model.tokenizer))
    _check_length(model.spec, tokens.positions)
    _check_limit(model.spec, tokens)
    return replace(
        model,
        tokens=tokens,
        overruled=tuple(overruled(tokens, model.spec.seq_len, model.spec.prompt)),
        late=_late_of_ready(replace(model, tokens=tokens)),
    )


def _late_of_ready(model: Exported) -> Late | None:
    """As the files beside its tokenizer say; None where it gives no vector for every token."""
    if not model.spec.multi:
        return None
    home = model.tokenizer and model.tokenizer.parent
    return _late(model.spec, model.tokens, home, model.tokenizer)


def _placed(model: Exported, store: Store) -> Exported:
    """A ready file that is given positions, with the first that its configuration counts from."""
    spec = model.spec
    given = (
        _truth_home(spec, store),
        model.tokenizer and model.tokenizer.parent,
        Path(spec.source).parent,
    )
    configs = (home / "config.json" for home in given if isinstance(home, Path))
    config = next((path for path in configs if path.is_file()), None)
    if config is not None:
        return replace(model, first_position=first_position(read_object(config)))
    said = "positions begin at 0: no config.json beside the file or its tokenizer says otherwise"
    return replace(model, note="; ".join(filter(None, [model.note, said])))


def tokenize_with(model: Exported, role: str = TEXT) -> Tokenize:
    """The model's own tokenizer, or hashed words where it has none but a vocabulary size.

    `role` is that of the texts: it decides which prompt they begin with.
    """
    prompt = model.prompts.get(role, "")
    late, first = model.late, model.first_position
    most = late.most(role) if late else None
    tokenize = _tokenizer(model.spec, model.tokenizer, model.tokens, most)

    def tokenized(texts: Sequence[Text]) -> Encoded:
        given = [prompt + text if isinstance(text, str) else text for text in texts]
        found = replace(tokenize(given), first=first)
        if late:
            return late.applied(found, role)
        lengths, longest = model.spec.lengths, model.tokens.longest
        return in_buckets(found, lengths, longest) if lengths else found

    return tokenized


def _truth_home(spec: ModelSpec, store: Store) -> Path | None:
    """The folder of a ready file's truth, of a hub id the copy on this machine; None without one.

    Raises ModelError where a hub id is not to be had.
    """
    if spec.truth is None:
        return None
    if Path(spec.truth).is_dir():
        return Path(spec.truth)
    _, source = sources.locate_truth(spec, store)
    return source if isinstance(source, Path) else None


def _tokenizer(
    spec: ModelSpec, tokenizer: Path | None, tokens: TokenSettings, most: int | None = None
) -> Tokenize:
    fixed, seq_len = not spec.lengths, _cut_at(spec, tokens)
    if tokenizer is not None:
        return file_tokenizer(tokenizer, seq_len, tokens, most, fixed=fixed)
    if spec.vocab_size is None or spec.scores:
        raise ModelError(
            f"model {spec.name} has no tokenizer: give `tokenizer` (a folder or tokenizer.json), "
            f"or `vocab_size` to hash words, in [tool.enginegate.models.{spec.name}]"
        )
    return hashed_tokenizer(spec.vocab_size, seq_len, fixed=fixed)


def _cut_at(spec: ModelSpec, tokens: TokenSettings) -> int | None:
    """Tokens that texts are cut at; None for no limit."""
    if spec.lengths:
        return most_tokens(spec.lengths, tokens.longest)
    return tokens.seq_len(spec.seq_len, spec.usual_len)


def _positions(spec: ModelSpec, source: "sources.Source") -> int | None:
    """Tokens that the model has positions for, as its configuration says; None if it does not."""
    if source is None:
        return positions_of(spec.architecture or {})
    if not isinstance(source, Path):
        return None
    return settings_at(source, TokenSettings()).positions


def _check_length(spec: ModelSpec, positions: int | None) -> None:
    """Raise ModelError for a length that the model has no positions for."""
    key, asked = ("lengths", _longest_listed(spec)) if spec.lengths else ("seq_len", spec.seq_len)
    if asked and positions and asked > positions:
        raise ModelError(
            f"model {spec.name}: {key} = {asked}, and its config.json has positions for "
            f"{positions} tokens: give at most {positions} in "
            f"[tool.enginegate.models.{spec.name}], or leave it out"
        )


def _check_limit(spec: ModelSpec, tokens: TokenSettings) -> None:
    """Raise ModelError for a bucket longer than the model's own files take a text."""
    asked = _longest_listed(spec)
    if asked and tokens.limit and asked > tokens.limit:
        raise ModelError(
            f"model {spec.name}: lengths = {asked}, and the model's own files cut a text at "
            f"{tokens.limit} tokens: give at most {tokens.limit} in "
            f'[tool.enginegate.models.{spec.name}], or "auto"'
        )


def _longest_listed(spec: ModelSpec) -> int | None:
    return most_tokens(spec.lengths, None) if spec.lengths else None


def _unpooled_prompt(spec: ModelSpec) -> ModelError:
    if spec.scores:
        return ModelError(
            f"model {spec.name}: its files have a prompt, and pairs are judged without one: remove "
            "it from its config_sentence_transformers.json if you deploy it so"
        )
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
    if holds_tokenizer(source) and source not in (named, named.parent):
        yield f"tokenizer {named.name}, where the model has its own"


def _export(
    spec: ModelSpec, source: "sources.Source", folder: Path, run_onnx: RunOnnx, say: Say
) -> Mapping[str, Any]:
    if isinstance(source, Path):
        _refuse_folder(spec, source)
    own = _own_tokens(spec, source)
    encoder, weights = _encoder(spec, source, _side(own))
    if say and (size_bytes := _size_bytes(encoder)) >= _LONG_BYTES:
        say(_expectation(size_bytes))
    own = own or _pipeline_tokens(spec, source, encoder)
    tokenizer = _save_tokenizer(spec, own, folder / _TOKENIZER) if own else None
    tokens = own.settings if own else TokenSettings(positions=_positions(spec, source))
    if spec.multi and own and tokenizer:
        late = _late(spec, tokens, source, tokenizer)
        _check_roles(spec, encoder.model, tokenizer, late, own)
    inputs = (*_INPUTS, *((_TYPES,) if own and own.types and spec.scores else ()))
    batch = _first_texts(spec, _tokenizer(spec, tokenizer, tokens), 4, inputs)
    if spec.kind is Kind.FACTORY:
        _refuse_random(spec, encoder, batch)
    path = folder / _FILE
    try:
        _write_onnx(encoder, batch, path)
    except Exception as error:  # the exporter raises many kinds
        raise ModelError(f"model {spec.name} cannot be exported to ONNX: {error}") from error
    difference = _check(spec, encoder, batch, path, run_onnx)
    return {
        "sha256": sha256_of_files(path, beside(path)),
        "weights": weights,
        "max_abs_to_torch": difference,
        "tokens": asdict(tokens),
        "inputs": list(batch),
        "leaves_prompt_out": spec.kind is not Kind.FACTORY and leaves_prompt_out(encoder),
    }


def _side(own: "_OwnTokens | None") -> str:
    """The side of the padding."""
    return own.settings.padding_side if own else "right"


def _encoder(
    spec: ModelSpec, source: "sources.Source", side: str = "right"
) -> tuple["torch.nn.Module", str]:
    """A module from (ids, mask), int64 [batch, seq], to float32 [batch, dim]; its origin."""
    if source is not None and not isinstance(source, Path):
        return source.eval().float(), f"from factory {spec.source}"
    if spec.scores and source:
        return _scorer(spec, source), sources.named(spec) + _left_out(spec, source)
    if spec.kind is Kind.SENTENCE_TRANSFORMERS or spec.sparse or spec.multi:
        if source is None:
            raise ModelError(
                f"model {spec.name}: {spec.source!r} holds no weights: name its folder"
            )
        left_out = _left_out(spec, source)
        return _sentence_transformer(spec, source), sources.named(spec) + left_out
    return _pooled(spec, source, side)


def load_module(spec: ModelSpec, source: "sources.Source") -> "torch.nn.Module":
    """The module that is exported: (ids, mask), int64 [batch, seq], to float32 [batch, dim]."""
    return _encoder(spec, source, _side(_own_tokens(spec, source)))[0]


def load_backbone(spec: ModelSpec, folder: Path) -> tuple["torch.nn.Module", "torch.nn.Module"]:
    """A stored transformers model and the head of its table, in fp32."""
    backbone, _ = _stored_backbone(spec, folder, folder)
    head = _head(spec, backbone.config.hidden_size)
    return backbone.eval().float(), head.eval().float()


def load_pipeline(spec: ModelSpec, folder: Path, **how: Any) -> Any:
    """A sentence-transformers model, by the rules of all loading; `how` goes to its backbone."""
    import sentence_transformers as library

    if spec.multi:
        as_found(spec, folder)  # the library makes up a projection for any folder
        return _read_by(library.MultiVectorEncoder, spec, folder, how)
    kind = library.SparseEncoder if spec.sparse else library.SentenceTransformer
    return _read_by(kind, spec, folder, how)


def load_scorer(spec: ModelSpec, folder: Path, **how: Any) -> Any:
    """A cross-encoder of sentence-transformers, by the rules of all loading."""
    from sentence_transformers import CrossEncoder

    return _read_by(CrossEncoder, spec, folder, how)


def _read_by(
    kind: Callable[..., Any], spec: ModelSpec, folder: Path, how: Mapping[str, Any]
) -> Any:
    """What a class of sentence-transformers makes of a folder."""

    def load() -> Any:
        return kind(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            model_kwargs={"use_safetensors": True, **how},
        )

    return _loaded(spec, folder, load)


def _scorer(spec: ModelSpec, folder: Path) -> "torch.nn.Module":
    """A module from tokens of pairs to their scores, float32 [pairs, 1], as `predict` gives."""
    import torch

    model = load_scorer(spec, folder, attn_implementation="eager")

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
        ) -> torch.Tensor:
            given = {"input_ids": ids, "attention_mask": mask}
            given |= {_TYPES: types} if types is not None else {}
            scores: torch.Tensor = model.activation_fn(self.model(given)["scores"])
            return scores

    return Scorer().eval().float()


def _sentence_transformer(spec: ModelSpec, folder: Path) -> "torch.nn.Module":
    import torch

    model, kept = load_pipeline(spec, folder, attn_implementation="eager"), dimensions(spec, folder)
    if spec.sparse and not is_splade(model):
        raise ModelError(
            f"model {spec.name}: {folder} is a sparse encoder of other parts than one transformer "
            "with SPLADE's pooling, and only that is judged: name such a model"
        )

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if spec.sparse:
                weights: torch.Tensor = splade_weights(self.model, ids, mask)
                return weights
            if spec.multi:
                vectors: torch.Tensor = token_vectors(self.model, ids, mask)
                return vectors
            if is_static(self.model):
                features = static_features(self.model, ids, mask)
            else:
                features = self.model({"input_ids": ids, "attention_mask": mask})
            return _cut(features["sentence_embedding"], kept)

    return Encoder().eval().float()


def _loaded(spec: ModelSpec, folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` returns, once the folder is known to be whole and to need no unpickling."""
    _refuse_folder(spec, folder)
    try:
        return load()
    except ModelError:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise _refused(spec, folder, str(error)) from error


def _refuse_folder(spec: ModelSpec, folder: Path) -> None:
    """Raise ModelError for a folder that names foreign code, is not whole or holds pickles."""
    _refuse_foreign_modules(spec, folder)
    check_folder(spec, folder)


def _refused(spec: ModelSpec, folder: Path, said: str) -> ModelError:
    if "trust_remote_code" in said:
        return _own_code(spec, folder)
    return ModelError(
        f"model {spec.name}: {folder} cannot be loaded: {said}; check that its files belong "
        f"together, and that transformers {installed_version('transformers')} knows such a model"
    )


def _refuse_foreign_modules(spec: ModelSpec, folder: Path) -> None:
    """Raise ModelError if a pipeline names classes that are not sentence-transformers' own."""
    if not follows_modules(spec):
        return
    whole = spec.kind is Kind.SENTENCE_TRANSFORMERS  # else they are looked at as they are loaded
    modules = [module.type for module in read_modules(folder) if whole]
    routed = [read_json(path, {}).get("types", {}) for path in folder.rglob("router_config.json")]
    named = [*modules, *(name for types in routed for name in types.values())]
    foreign = [n for n in named if not n.startswith(f"{LIBRARY}.") and n != PYLATE_DENSE]
    if foreign and not spec.trust_remote_code:
        raise _own_code(spec, folder)


def _own_code(spec: ModelSpec, folder: Path | str) -> ModelError:
    return ModelError(
        f"model {spec.name}: {folder} cannot be loaded without running code of its own, which is "
        f"not done: read that code, then say `trust_remote_code = true` in "
        f"[tool.enginegate.models.{spec.name}]"
    )


def _pooled(spec: ModelSpec, folder: Path | None, side: str) -> tuple["torch.nn.Module", str]:
    if folder is None:
        backbone, left_out = _seeded_backbone(spec), ""
    else:
        backbone, left_out = _stored_backbone(spec, folder, folder)
    if folder is not None and is_pipeline(spec, folder):
        encoder = _pipeline(spec, folder, backbone)
    else:
        encoder = _headed(spec, folder, backbone, side)
    return encoder.eval().float(), _origin(spec, folder) + left_out


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
    pooling, normalize = spec.pooling or DEFAULT_POOLING, spec.normalize
    kept = dimensions(spec, folder)

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


def _stored_backbone(spec: ModelSpec, folder: Path, part: Path) -> tuple[Any, str]:
    """The model of transformers in a part of a folder, and what is to be said of its weights."""
    model, taken = _loaded(spec, folder, lambda: _taken(spec, part))
    alone = " (its encoder)" if type(model).__name__.endswith("EncoderModel") else ""
    said = said_of(spec, taken)
    refuse_idle(spec, folder, taken)
    return model, alone + said


def _left_out(spec: ModelSpec, folder: Path) -> str:
    """Say what of a pipeline's checkpoints its classes leave out; ModelError if it is needed.

    They are read once more for it: sentence-transformers does not hand on what transformers tells,
    and fills a weight that is not there with random values.
    """
    with reading(folder, "the model's files", "fetch them again", ModelError):
        parts = backbones(spec, folder)
    said = (_stored_backbone(spec, folder, part)[1] for part in parts)
    return "".join(dict.fromkeys(said))


def _taken(spec: ModelSpec, folder: Path) -> tuple[Any, Taken]:
    """A model of transformers, and what it took of its checkpoint."""
    model, info = _auto_class(spec, folder).from_pretrained(
        str(folder),
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=spec.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = {name for name in info["missing_keys"] if not name.startswith("pooler.")}
    return model, Taken(folder, missing, info["unexpected_keys"], _hidden(model, folder))


def _hidden(model: Any, folder: Path) -> list[str]:
    """Weights of the checkpoint that transformers drops without a word, as the class says."""
    hides = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["(?!)"]))
    prefix = f"{model.base_model_prefix}."
    taken = {name.removeprefix(prefix) for name in model.state_dict()}
    names = (name for name in weight_names(folder) if name.removeprefix(prefix) not in taken)
    return sorted(name for name in names if hides.search(name))


def _auto_class(spec: ModelSpec, folder: Path) -> Any:
    """The class to load by: of an encoder with a decoder the class of the encoder alone."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoModelForTextEncoding,
    )

    if spec.scores or spec.sparse:
        return AutoModelForSequenceClassification if spec.scores else AutoModelForMaskedLM
    trusted = spec.trust_remote_code
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trusted)
    found = AutoModelForTextEncoding._model_mapping.get(type(config), None)
    if getattr(found, "__name__", "").endswith("EncoderModel"):
        return AutoModelForTextEncoding
    if config.is_encoder_decoder and spec.kind is Kind.TRANSFORMERS:
        raise ModelError(
            f"model {spec.name}: {folder} is an encoder with a decoder ({config.model_type}), and "
            "transformers has no class for the encoder alone, so what it gives is its decoder's: "
            "build what gives the embedding in a `factory`"
        )
    return AutoModel


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
        types: the model is given token types too.
    """

    tokenizer: "Tokenizer"
    settings: TokenSettings
    ask: Callable[[Sequence[Text]], tuple[Any, Any]] | None = None
    types: bool = False


def _own_tokens(spec: ModelSpec, source: "sources.Source") -> _OwnTokens | None:
    """The tokenizer of a folder or of the table; None if there is none, or a pipeline's own."""
    if _has_pipeline(spec) and not (spec.tokenizer or spec.scores):
        return None
    given = spec.tokenizer or (str(source) if isinstance(source, Path) else None)
    if given is None or (not spec.tokenizer and not holds_tokenizer(Path(given))):
        return None
    home = source if isinstance(source, Path) else Path(given)
    if Path(given).is_file():
        tokenizer = open_tokenizer(Path(given))
        return _OwnTokens(tokenizer, settings_at(home, settings_of(Path(given).parent, tokenizer)))
    return _of_library(load_tokenizer(spec, given), home)


def _has_pipeline(spec: ModelSpec) -> bool:
    """Tell if sentence-transformers says how its texts become tokens."""
    return spec.kind is Kind.SENTENCE_TRANSFORMERS or spec.multi


def _pipeline_tokens(
    spec: ModelSpec, source: "sources.Source", encoder: "torch.nn.Module"
) -> _OwnTokens | None:
    """The tokenizer that a sentence-transformers model uses; None for any other model."""
    if not _has_pipeline(spec) or not isinstance(source, Path):
        return None
    model: Any = encoder.model
    if is_static(model):
        tokenizer, settings = static_tokenizer(model), settings_at(source, TokenSettings())
        return _OwnTokens(tokenizer, settings, lambda texts: static_tokens(model, texts))
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        raise ModelError(
            f"model {spec.name}: {source} tokenises by {type(model.tokenizer).__name__}, of which "
            "no tokenizer.json can be made: give one with `tokenizer` in "
            f"[tool.enginegate.models.{spec.name}]"
        )
    own = _of_library(model.tokenizer, source)
    tokenize = getattr(model, "preprocess", model.tokenize)  # its name since 5.3
    limit = limit_of(model.max_seq_length)

    def ask(texts: Sequence[Text]) -> tuple[Any, Any]:
        found = tokenize(list(texts))
        return found["input_ids"].numpy(), found["attention_mask"].numpy()

    return _OwnTokens(own.tokenizer, replace(own.settings, limit=limit), ask)


def _of_library(tokenizer: Any, home: Path) -> _OwnTokens:
    """A tokenizer of transformers, with what a model's folder says more."""
    settings = settings_from(tokenizer, home)
    how = {"padding": True, "truncation": settings.limit is not None, "return_tensors": "np"}

    def ask(texts: Sequence[Text]) -> tuple[Any, Any]:
        asked = tokenizer(list(texts), max_length=settings.limit, **how)
        return asked["input_ids"], asked["attention_mask"]

    has_padding = tokenizer.pad_token is not None
    types = _TYPES in tokenizer.model_input_names
    return _OwnTokens(tokenizer.backend_tokenizer, settings, ask if has_padding else None, types)


def _save_tokenizer(spec: ModelSpec, own: _OwnTokens, target: Path) -> Path:
    """Write a tokenizer as `tokenizer.json`, and see that it gives what its library gives."""
    own.tokenizer.save(str(target))
    if own.ask is not None:
        texts = _texts(spec, _COMPARED_TEXTS)
        ids, mask = own.ask(texts)
        found = file_tokenizer(target, ids.shape[1], own.settings)(texts)
        if not (np.array_equal(found.ids, ids) and np.array_equal(found.mask, mask)):
            raise ModelError(
                f"model {spec.name}: its tokenizer.json does not give the tokens that the model "
                "itself takes, so no verdict on it would hold: build it in a `factory`, with its "
                "own `tokenizer`"
            )
    return target


def _check_roles(spec: ModelSpec, model: Any, tokenizer: Path, late: Late, own: _OwnTokens) -> None:
    """Raise ModelError unless queries and documents become the tokens that the library takes."""
    for role in (QUERY, DOCUMENT):
        if not _takes_same(model, role, tokenizer, late, own.settings):
            raise ModelError(
                f"model {spec.name}: its files do not say which tokens of a {role} the model "
                "itself takes, so no verdict on it would hold: save it with the installed "
                "sentence-transformers, and name that folder"
            )


def _takes_same(
    model: Any, role: str, tokenizer: Path, late: Late, settings: TokenSettings
) -> bool:
    """Tell if texts of a role become the tokens of the library, and the same are searched."""
    texts = read_texts(None)[1][:_COMPARED_TEXTS]
    outputs = raw_outputs(model, texts, role, None)
    parts = [[o[name].numpy() for o in outputs] for name in ("input_ids", "attention_mask")]
    width, prompt = max(map(len, parts[0])), settings.prompts.get(role, "")
    tokenize = file_tokenizer(tokenizer, width, settings, late.most(role))
    found = late.applied(tokenize([prompt + text for text in texts]), role)
    ids, mask = (aligned(rows, width, settings.padding_side) for rows in parts)
    used = mask > 0
    return np.array_equal(np.asarray(found.kept), used) and bool((found.ids == ids)[used].all())


def holds_tokenizer(folder: Path) -> bool:
    """Asked because transformers makes up an empty tokenizer for a folder that has none."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES)


def load_tokenizer(spec: ModelSpec, given: str) -> Any:
    """The tokenizer of a folder or a hub id. Raises ModelError if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        if Path(given).is_dir() and not holds_tokenizer(Path(given)):
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
            dynamic_shapes=(dynamic,) * len(batch),
            dynamo=True,
            external_data=is_large(_size_bytes(encoder)),
            verbose=False,
        )


def _expectation(size_bytes: int) -> str:
    size_gb = size_bytes / 1e9
    return f"{size_gb:.1f} GB to export and check, about {_S_PER_GB * size_gb:.0f} s"


def _size_bytes(encoder: "torch.nn.Module") -> int:
    tensors = [*encoder.parameters(), *encoder.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _check(
    spec: ModelSpec, encoder: "torch.nn.Module", batch: Batch, path: Path, run_onnx: RunOnnx
) -> float:
    """Largest difference between the file and torch, on two batch sizes and two lengths."""
    kept = batch["attention_mask"][0].nonzero()[0][: len(batch["attention_mask"][0]) // 2]
    shorter = {name: values[:1, kept] for name, values in batch.items()}
    batches = (batch, shorter, take(batch, slice(3)))
    worst = max(_difference(encoder, tried, path, run_onnx) for tried in batches)
    if not worst <= _TOLERANCE:
        raise ModelError(
            f"the ONNX export of model {spec.name} differs from torch by {worst:.3g} of its "
            f"largest value (limit {_TOLERANCE:g}): it cannot be the reference; "
            "try another torch version"
        )
    return worst


def _difference(encoder: "torch.nn.Module", batch: Batch, path: Path, run_onnx: RunOnnx) -> float:
    contiguous = {name: np.ascontiguousarray(values) for name, values in batch.items()}
    return _distance(run_onnx(path, contiguous), _embed(encoder, contiguous))


def _embed(encoder: "torch.nn.Module", batch: Batch) -> npt.NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        values: npt.NDArray[np.float32] = encoder(*map(torch.from_numpy, batch.values())).numpy()
    return values


def _distance(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest difference in units of the largest expected value; infinite for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _refuse_random(spec: ModelSpec, encoder: "torch.nn.Module", batch: Batch) -> None:
    """Raise ModelError if a factory makes another model when it is called again."""
    again, _ = _encoder(spec, sources.call_factory(spec))
    distance = _distance(_embed(again, batch), _embed(encoder, batch))
    if not distance <= _TOLERANCE:
        raise ModelError(
            f"model {spec.name}: factory {spec.source!r} made another model when it was called "
            f"again (embeddings differ by {distance:.3g} of their largest value): seed it with "
            "torch.manual_seed, or load its weights, so that every run judges the same model"
        )
