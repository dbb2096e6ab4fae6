"""The truth: the embeddings of a model as its own authors compute them, in torch, fp32.

Kept in the store by content: a run that finds them there imports no torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enginegate.cache import Store
from enginegate.errors import EngineGateError, ModelError
from enginegate.files import sha256_of_json
from enginegate.models import sources
from enginegate.models.export import (
    holds_tokenizer,
    load_module,
    load_pipeline,
    load_scorer,
    load_tokenizer,
)
from enginegate.models.late import aligned, kept_vectors, raw_outputs
from enginegate.models.lengths import Batch, Tokens, for_all, most_tokens
from enginegate.models.modules import MODULES, has_modules
from enginegate.models.pipeline import (
    Pipeline,
    Vectors,
    pipeline_from_table,
    pipeline_of,
    places_of,
)
from enginegate.models.pooling import as_table_says, otherwise
from enginegate.models.spec import Kind, ModelSpec
from enginegate.models.static import cut_static, is_static
from enginegate.models.tokens import (
    DOCUMENT,
    QUERY,
    TEXT,
    TokenSettings,
    limit_of,
    longer,
    other_prompt,
    settings_at,
    settings_from,
)
from enginegate.models.workload import Workload, take

if TYPE_CHECKING:
    import torch

_RECIPE = 3  # raise when the embeddings change for the same source
_FILE = "embeddings.npy"
_AT_ONCE = 32  # texts a batch
ENCODE, PREDICT = "encode()", "predict()"
BY_ROLES = "encode_query() and encode_document()"
TABLE_SAYS = "the table says "  # before what a table overrules
_BY_PARTS = "its own tokenizer and model"
_BY_MODULE = "its module on the same tokens"


@dataclass(frozen=True)
class Truth:
    """The embeddings of the evaluation texts as the model's authors compute them.

    Attributes:
        embeddings: float32 [texts, dim].
        by: the way they were computed.
        notes: where the table of the model overrules its own files.
    """

    embeddings: Vectors
    by: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Author:
    """A model as its authors run it.

    Attributes:
        by: the way in words.
        embed: the evaluation texts to float32 [texts, dim].
        notes: where the table of the model overrules its own files.
        parts: its pipeline taken apart; None where it cannot be.
    """

    by: str
    embed: Callable[[], Vectors]
    notes: tuple[str, ...] = ()
    parts: Callable[[], Pipeline | None] = lambda: None


def truth_of(spec: ModelSpec, store: Store, workload: Workload) -> Truth | None:
    """The truth of a model, computed once per content; None for an `.onnx` file without one.

    That of a factory is computed in every run: its content does not tell all that its code does.
    Raises ModelError if it cannot be computed.
    """
    if spec.kind is Kind.ONNX and spec.truth is None:
        return None
    own, source = _located(spec, store)
    key = _key(own, source, workload)

    def build(folder: Path) -> Mapping[str, Any]:
        found = _computed(own, source, workload)
        np.save(folder / _FILE, found.embeddings, allow_pickle=False)
        return {"by": found.by, "notes": found.notes}

    if key is None:
        return _computed(own, source, workload)
    entry = store.get_or_build("truth", key, build)
    embeddings: Vectors = np.load(entry.folder / _FILE, allow_pickle=False)
    return Truth(embeddings, entry.properties["by"], tuple(entry.properties["notes"]))


def truth_key(spec: ModelSpec, store: Store, workload: Workload) -> dict[str, Any] | None:
    """All that the truth of a model depends on; None for a factory, of which not all is known."""
    return _key(*_located(spec, store), workload)


def states_pooling(spec: ModelSpec, store: Store) -> bool:
    """Tell if it is known how the truth of a model is pooled; of a ready file it may not be.

    Neither its table says so then, as the file has one vector a text, nor the folder that it was
    exported from, as that has no `modules.json`.
    """
    if spec.kind is not Kind.ONNX or spec.truth is None or spec.pooling is not None:
        return True
    if spec.of_library:
        return True
    return _located(spec, store)[0].kind is not Kind.TRANSFORMERS


def parts_of(spec: ModelSpec, store: Store, workload: Workload) -> Pipeline | None:
    """The model's own pipeline, taken apart; None where it has none to be taken apart."""
    return _author(*_located(spec, store), workload).parts()


def _located(spec: ModelSpec, store: Store) -> tuple[ModelSpec, "sources.Source"]:
    """The definition of the model that is the truth, and where it is."""
    if spec.kind is not Kind.ONNX:
        return _as_its_folder_says(spec, sources.locate(spec, store))
    found, source = _as_its_folder_says(*sources.locate_truth(spec, store))
    if found.kind is Kind.SENTENCE_TRANSFORMERS:  # the table says how the file is pooled
        found = replace(found, pooling=None, normalize=None)
    return found, source


def _as_its_folder_says(
    spec: ModelSpec, source: "sources.Source"
) -> tuple[ModelSpec, "sources.Source"]:
    """A folder with `modules.json` is what sentence-transformers makes of it, but for a head."""
    if not isinstance(source, Path) or not has_modules(source) or spec.head is not None:
        return spec, source
    if find_spec("sentence_transformers") is None:
        raise ModelError(
            f"model {spec.name}: {source / MODULES} says how its authors embed a text, which only "
            "sentence-transformers can do: pip install sentence-transformers"
        )
    return replace(spec, kind=Kind.SENTENCE_TRANSFORMERS), source


def _key(spec: ModelSpec, source: "sources.Source", workload: Workload) -> dict[str, Any] | None:
    if source is not None and not isinstance(source, Path):
        return None
    by_role = dict(spec.prompt or {}) if spec.multi and not isinstance(spec.prompt, str) else None
    on_tokens = spec.kind is not Kind.SENTENCE_TRANSFORMERS and not _tokenizer_of(spec, source)
    return {
        "recipe": _RECIPE,
        "content": sources.content_key(spec, source),
        "texts": sha256_of_json(workload.texts),
        "length": workload.shape[1],
        "prompt": spec.prompt if isinstance(spec.prompt, str) else by_role,
        "tokens": workload.sha256 if on_tokens else "",
    }


def _cut_at(spec: ModelSpec, workload: Workload, own: int | None) -> int | None:
    """Tokens that texts are cut at: by the table, or at the usual length if the model takes that.

    Where texts have another length than the table says, a tokenizer of the project's cuts them: the
    model's own files decide then.
    """
    width = workload.shape[1]
    if spec.seq_len is None:
        return min(width, own or width)
    return width if spec.seq_len == width else own


def _tokenizer_of(spec: ModelSpec, source: Path | None) -> str | None:
    """The folder of a transformers model's own tokenizer, whatever the table names beside it.

    The table's folder or hub id where it has none of its own; None if that is a file, or none.
    """
    if source and holds_tokenizer(source):
        return str(source)
    named = spec.tokenizer
    return named if source and named and not Path(named).is_file() else None


def _computed(spec: ModelSpec, source: "sources.Source", workload: Workload) -> Truth:
    try:
        author = _author(spec, source, workload)
        embeddings = author.embed()
    except EngineGateError:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise ModelError(
            f"the truth of model {spec.name} cannot be computed from {sources.named(spec)}: "
            f"{error}; see that it embeds a text outside of this run"
        ) from error
    return Truth(np.ascontiguousarray(embeddings, np.float32), author.by, author.notes)


def _author(spec: ModelSpec, source: "sources.Source", workload: Workload) -> _Author:
    if isinstance(source, Path):
        if spec.scores:
            return _by_predict(spec, source, workload)
        if spec.multi:
            return _by_roles(spec, source, workload)
        if spec.kind is Kind.SENTENCE_TRANSFORMERS or spec.sparse:
            return _by_encode(spec, source, workload)
        if tokenizer := _tokenizer_of(spec, source):
            return _by_parts(spec, source, tokenizer, workload)
    module = load_module(spec, source)
    notes = tuple(_other_vectors(spec, source)) if isinstance(source, Path) else ()
    return _Author(_BY_MODULE, lambda: _on_tokens(spec, module, workload), notes)


def _by_encode(spec: ModelSpec, folder: Path, workload: Workload) -> _Author:
    model = load_pipeline(spec, folder).float()
    own, prompts = limit_of(model.max_seq_length), settings_at(folder, TokenSettings()).prompts
    places = places_of(list(model)[1:], folder) if has_modules(folder) else {}
    cut_at = _cut_at(spec, workload, own)
    _follow_table(model, spec, cut_at)

    def parts() -> Pipeline | None:
        whole = places and hasattr(model[0], "auto_model") and not spec.sparse
        prompt = _prompt(spec, prompts)
        return pipeline_of(model, places, workload.shape[1], prompt) if whole else None

    notes = (*_other_tokens(spec, cut_at, own, prompts), *_other_vectors(spec, folder))
    return _Author(ENCODE, lambda: _encoded(model, spec, workload.texts), notes, parts)


def _by_predict(spec: ModelSpec, folder: Path, workload: Workload) -> _Author:
    model = load_scorer(spec, folder).float()
    named = "max_seq_length" if hasattr(model, "max_seq_length") else "max_length"  # until 5.x
    own = limit_of(getattr(model, named))
    cut_at = _cut_at(spec, workload, own)
    setattr(model, named, cut_at)
    notes = tuple(_other_tokens(spec, cut_at, own, {}))
    pairs = workload.pairs.rows if workload.pairs else ()

    def score() -> Vectors:
        found: Vectors = model.predict(list(pairs), batch_size=_AT_ONCE, show_progress_bar=False)
        return found.reshape(-1, 1)

    return _Author(PREDICT, score, notes)


def _by_roles(spec: ModelSpec, folder: Path, workload: Workload) -> _Author:
    """As queries and as documents, in the order of the rows."""
    model = load_pipeline(spec, folder).float()
    own = limit_of(model.max_seq_length)
    cut_at = _cut_at(spec, workload, own)
    _cut_roles(model, cut_at)
    texts, width = workload.searched.texts if workload.searched else (), workload.shape[1]

    def encode() -> Vectors:
        asked = (raw_outputs(model, texts, role, spec.prompt) for role in (QUERY, DOCUMENT))
        rows = [kept_vectors(output) for both in zip(*asked, strict=True) for output in both]
        return aligned(rows, width, model.tokenizer.padding_side)

    notes = tuple(_other_tokens(replace(spec, prompt=None), cut_at, own, {}))
    return _Author(BY_ROLES, encode, notes)


def _cut_roles(model: Any, length: int | None) -> None:
    """Cut texts of every role at this number of tokens, where the model does not cut before."""
    body = model[0]
    model.max_seq_length = length
    for name in ("query_length", "document_length"):
        own = getattr(body, name)
        if own and length and own > length:
            setattr(body, name, length)


def _follow_table(model: Any, spec: ModelSpec, length: int | None) -> None:
    """Change a sentence-transformers model where its table overrules it."""
    if spec.sparse:
        model.max_seq_length = length
        return
    _, *modules = model
    del model[1:]
    model.extend(as_table_says(spec, modules))
    if is_static(model):
        cut_static(model, length)
    else:
        model.max_seq_length = length
    model.truncate_dim = spec.truncate_dim or model.truncate_dim


def _encoded(model: Any, spec: ModelSpec, texts: Sequence[str]) -> Vectors:
    how: dict[str, Any] = {"batch_size": _AT_ONCE, "show_progress_bar": False}
    if isinstance(spec.prompt, str):
        how["prompt"] = spec.prompt
    if spec.sparse:
        how["convert_to_sparse_tensor"] = False
        dense: Vectors = model.encode(list(texts), **how).numpy()
        return dense
    found: Vectors = model.encode(list(texts), **how)
    return found


def _by_parts(spec: ModelSpec, folder: Path, tokenizer: str, workload: Workload) -> _Author:
    opened = load_tokenizer(spec, tokenizer)
    settings = settings_from(opened, folder)
    parts = pipeline_from_table(spec, opened, folder, workload.shape[1], settings)
    cut = replace(parts, length=_cut_at(spec, workload, parts.length))
    notes = (
        *_other_tokens(spec, cut.length, parts.length, settings.prompts),
        *_other_vectors(spec, folder),
    )
    return _Author(_BY_PARTS, lambda: cut.embed(workload.texts), notes, lambda: cut)


def _prompt(spec: ModelSpec, prompts: Mapping[str, str]) -> str:
    """What the evaluation texts begin with; `prompts` are the model's own by role."""
    return TokenSettings(prompts=prompts).prompts_with(spec.prompt).get(TEXT, "")


def _other_tokens(
    spec: ModelSpec, length: int | None, own: int | None, prompts: Mapping[str, str]
) -> Iterator[str]:
    """Statements of what a table says otherwise of tokens than the model's own files do."""
    if spec.seq_len and own and spec.seq_len > own:
        yield f"{TABLE_SAYS}{longer(spec.seq_len, own)}"
    elif length != own and (by := _cut_by(spec, own)):
        yield f"texts cut at {length} tokens {by}{f', not at {own}' if own else ''}"
    given, default = _prompt(spec, prompts), prompts.get(TEXT, "")
    if given != default:
        yield f"{TABLE_SAYS}{other_prompt(TEXT, given, default)}"


def _cut_by(spec: ModelSpec, own: int | None) -> str:
    """The reason why texts are cut at another length than the model's own; empty if none is."""
    if spec.lengths:
        most = most_tokens(spec.lengths, own)
        return "by `lengths`" if most != own else ""
    return "by `seq_len`" if spec.seq_len else "by default"


def _other_vectors(spec: ModelSpec, folder: Path) -> Iterator[str]:
    """Statements of what a table says otherwise of vectors than the model's own files do."""
    yield from (f"{TABLE_SAYS}{said}" for said in otherwise(spec, folder))


def _embedded(module: "torch.nn.Module", ids: Tokens, mask: Tokens) -> Vectors:
    import torch

    with torch.inference_mode():
        found: Vectors = module(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()
    return found


def _on_tokens(spec: ModelSpec, module: "torch.nn.Module", workload: Workload) -> Vectors:
    batch = workload.evaluation
    if not ids_and_mask(spec, batch):
        raise ModelError(
            f"the truth of model {spec.name} has no tokenizer, and the file takes no attention "
            "mask that it could be given: put the tokenizer beside the truth"
        )
    return for_all(
        batch, _AT_ONCE, lambda rows: _embedded(module, *ids_and_mask(spec, take(batch, rows)))
    )


def ids_and_mask(spec: ModelSpec, batch: Batch) -> tuple[Tokens, ...]:
    """The tokens that a model's file is given, and their mask; nothing where it takes no mask."""
    given = {spec.inputs.get(name): values.astype(np.int64) for name, values in batch.items()}
    return (given["ids"], given["mask"]) if {"ids", "mask"} <= set(given) else ()
