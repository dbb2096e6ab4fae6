"""The truth: the embeddings of a model as its own authors compute them, in torch, fp32.

Kept in the store by content: a run that finds them there imports no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enginegate.cache import Store
from enginegate.errors import EngineGateError, ModelError
from enginegate.files import sha256_of_json
from enginegate.models import sources
from enginegate.models.export import holds_tokenizer, load_module, load_pipeline, load_tokenizer
from enginegate.models.pipeline import (
    MODULES,
    Pipeline,
    Vectors,
    pipeline_from_table,
    pipeline_of,
)
from enginegate.models.spec import Kind, ModelSpec
from enginegate.models.workload import Tokens, Workload, chunks

if TYPE_CHECKING:
    import torch

_RECIPE = 1  # raise when the embeddings change for the same source
_FILE = "embeddings.npy"
_AT_ONCE = 32  # texts a batch
ENCODE = "encode()"
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
        own_length: tokens that it takes by its own files; None for no limit.
        parts: its pipeline taken apart; None where it cannot be.
    """

    by: str
    embed: Callable[[], Vectors]
    own_length: int | None = None
    parts: Callable[[], Pipeline | None] = lambda: None


def truth_of(spec: ModelSpec, store: Store, workload: Workload) -> Truth | None:
    """The truth of a model, computed once per content; None for an `.onnx` file without one.

    That of a factory is computed in every run: its content does not tell all that its code does.
    Raises ModelError if it cannot be computed.
    """
    if spec.kind is Kind.ONNX and spec.truth is None:
        return None
    own, source = _located(spec, store)

    def build(folder: Path) -> Mapping[str, Any]:
        found = _computed(own, source, workload)
        np.save(folder / _FILE, found.embeddings, allow_pickle=False)
        return {"by": found.by, "notes": found.notes}

    if source is not None and not isinstance(source, Path):
        return _computed(own, source, workload)
    entry = store.get_or_build("truth", _key(own, source, workload), build)
    embeddings: Vectors = np.load(entry.folder / _FILE, allow_pickle=False)
    return Truth(embeddings, entry.properties["by"], tuple(entry.properties["notes"]))


def parts_of(spec: ModelSpec, store: Store, workload: Workload) -> Pipeline | None:
    """The model's own pipeline, taken apart; None where it has none to be taken apart."""
    return _author(*_located(spec, store), workload).parts()


def _located(spec: ModelSpec, store: Store) -> tuple[ModelSpec, "sources.Source"]:
    """The definition of the model that is the truth, and where it is."""
    if spec.kind is not Kind.ONNX:
        return _as_its_folder_says(spec, sources.locate(spec, store))
    asked: dict[str, Any] = {
        "source": spec.truth,
        "truth": None,
        "tokenizer": None,
        "architecture": None,
    }
    own = replace(spec, kind=Kind.TRANSFORMERS, **asked)
    try:
        return _as_its_folder_says(own, sources.locate(own, store))
    except ModelError as error:
        raise ModelError(str(error).replace(f"`{own.kind}`", "`truth`")) from error


def _as_its_folder_says(
    spec: ModelSpec, source: "sources.Source"
) -> tuple[ModelSpec, "sources.Source"]:
    """A folder with `modules.json` is what sentence-transformers makes of it, but for a head."""
    if not isinstance(source, Path) or not (source / MODULES).is_file() or spec.head is not None:
        return spec, source
    if find_spec("sentence_transformers") is None:
        raise ModelError(
            f"model {spec.name}: {source / MODULES} says how its authors embed a text, which only "
            "sentence-transformers can do: pip install sentence-transformers"
        )
    return replace(spec, kind=Kind.SENTENCE_TRANSFORMERS), source


def _key(spec: ModelSpec, source: Path | None, workload: Workload) -> dict[str, Any]:
    on_tokens = spec.kind is not Kind.SENTENCE_TRANSFORMERS and not _tokenizer_of(spec, source)
    return {
        "recipe": _RECIPE,
        "content": sources.content_key(spec, source),
        "texts": sha256_of_json(workload.texts),
        "length": _asked_length(spec, workload),
        "tokens": workload.sha256 if on_tokens else "",
    }


def _asked_length(spec: ModelSpec, workload: Workload) -> int | None:
    """Tokens that texts are cut at by the table of the model; None where its own files decide."""
    width = workload.shape[1]
    return width if spec.seq_len in (None, width) else None


def _tokenizer_of(spec: ModelSpec, source: Path | None) -> Path | None:
    """The folder of a transformers model's own tokenizer; None if it has none."""
    given = Path(spec.tokenizer) if spec.tokenizer else source
    return given if given and given.is_dir() and holds_tokenizer(given) else None


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
    asked = _asked_length(spec, workload) if author.by != _BY_MODULE else None
    overruled = asked is not None and asked != author.own_length
    own = f", not at {author.own_length}" if author.own_length else ""
    notes = (f"texts cut at {asked} tokens by `seq_len`{own}",) if overruled else ()
    return Truth(np.ascontiguousarray(embeddings, np.float32), author.by, notes)


def _author(spec: ModelSpec, source: "sources.Source", workload: Workload) -> _Author:
    if isinstance(source, Path):
        if spec.kind is Kind.SENTENCE_TRANSFORMERS:
            return _by_encode(spec, source, workload)
        if folder := _tokenizer_of(spec, source):
            return _by_parts(spec, source, folder, workload)
    module = load_module(spec, source)
    return _Author(_BY_MODULE, lambda: _on_tokens(spec, module, workload))


def _by_encode(spec: ModelSpec, folder: Path, workload: Workload) -> _Author:
    model = load_pipeline(spec, folder).float()
    own_length = model.max_seq_length
    if asked := _asked_length(spec, workload):
        model.max_seq_length = asked

    def embed() -> Vectors:
        texts: Sequence[str] = list(workload.texts)
        found: Vectors = model.encode(texts, batch_size=_AT_ONCE, show_progress_bar=False)
        return found

    def parts() -> Pipeline | None:
        whole = hasattr(model[0], "auto_model") and (folder / MODULES).is_file()
        return pipeline_of(model, folder, workload.shape[1]) if whole else None

    return _Author(ENCODE, embed, own_length, parts)


def _by_parts(spec: ModelSpec, folder: Path, tokenizer: Path, workload: Workload) -> _Author:
    opened = load_tokenizer(spec, tokenizer)
    parts = pipeline_from_table(spec, opened, folder, workload.shape[1])
    cut = replace(parts, length=_asked_length(spec, workload) or parts.length)
    return _Author(_BY_PARTS, lambda: cut.embed(workload.texts), parts.length, lambda: cut)


def _on_tokens(spec: ModelSpec, module: "torch.nn.Module", workload: Workload) -> Vectors:
    import torch

    def embed(ids: Tokens, mask: Tokens) -> Vectors:
        with torch.inference_mode():
            found: Vectors = module(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()
        return found

    given = {spec.inputs.get(name): name for name in workload.evaluation}
    if not {"ids", "mask"} <= set(given):
        raise ModelError(
            f"the truth of model {spec.name} has no tokenizer, and the file takes no attention "
            "mask that it could be given: put the tokenizer beside the truth"
        )
    parts = chunks(workload.evaluation, _AT_ONCE)
    return np.concatenate([embed(part[given["ids"]], part[given["mask"]]) for part in parts])
