"""Late interaction: of which tokens a search takes the vectors, as a model's own files say it.

The graph gives a vector for every place. That padding and some words of documents are left out, and
that queries are filled up with a token of their own, is done outside of it: by whoever searches.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from enginegate.models.modules import read_modules
from enginegate.models.tokens import (
    DOCUMENT,
    QUERY,
    Encoded,
    Prompts,
    limit_of,
    read_object,
    special_token,
)

Vectors: TypeAlias = npt.NDArray[np.floating[Any]]
Kept: TypeAlias = npt.NDArray[np.bool_]

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MASK = "MultiVectorMask"
PYLATE = "ColBERT"  # its word for what it saved
PYLATE_DENSE = "pylate.models.Dense.Dense"  # which sentence-transformers reads as its own
_USUAL_FILL = 32  # of PyLate, and of sentence-transformers for what PyLate saved
_FIXED = "fixed"
_ROLES = (QUERY, DOCUMENT)


@dataclass(frozen=True)
class Late:
    """How texts of a role become the vectors that are searched.

    Attributes:
        skipped: ids of tokens that no search uses, in texts of the roles `skips`.
        skips: roles.
        fill: tokens that a query is filled up to with `filler`; None where none is.
        fixed: cut queries there too.
        filler: id of the token; the model attends to it only with `attend`.
        attend: see there.
        lengths: tokens that texts of a role are cut at; none for a role without a limit of its own.
    """

    skipped: tuple[int, ...] = ()
    skips: tuple[str, ...] = (DOCUMENT,)
    fill: int | None = None
    fixed: bool = True
    filler: int = 0
    attend: bool = False
    lengths: Mapping[str, int] = field(default_factory=dict)

    def most(self, role: str) -> int | None:
        """Tokens that texts of a role are cut at; None for the usual number."""
        own = self.lengths.get(role)
        if role != QUERY or self.fill is None:
            return own
        return self.fill if self.fixed else own and max(own, self.fill)

    def applied(self, encoded: Encoded, role: str) -> Encoded:
        """Texts of a role, filled up, with which of their tokens a search uses."""
        found = self._filled(encoded) if role == QUERY and self.fill else encoded
        kept = found.kept if found.kept is not None else found.mask > 0
        skips = role in self.skips or (role not in _ROLES and DOCUMENT in self.skips)
        return replace(found, kept=kept & ~(np.isin(found.ids, self.skipped) & skips))

    def _filled(self, encoded: Encoded) -> Encoded:
        places = (encoded.mask == 0) & (np.arange(encoded.mask.shape[1]) < (self.fill or 0))
        return replace(
            encoded,
            ids=np.where(places, self.filler, encoded.ids),
            mask=np.where(places & self.attend, 1, encoded.mask),
            kept=places | (encoded.mask > 0),
        )


def token_vectors(model: Any, ids: Any, mask: Any) -> Any:
    """Vectors of tokens, float32 [batch, seq, dim], of torch's `ids` and `mask` [batch, seq]."""
    features = {"input_ids": ids, "attention_mask": mask}
    for module in model:
        if type(module).__name__ != MASK:
            features = module(features)
    return features["token_embeddings"]


def raw_outputs(model: Any, texts: Sequence[str], role: str, prompt: Prompts) -> Any:
    """What sentence-transformers gives for each text: ids, mask of what is searched, vectors.

    A `prompt` given, for all or by role, replaces the model's own.
    """
    encode = model.encode_query if role == QUERY else model.encode_document
    given = prompt if isinstance(prompt, str) else (prompt or {}).get(role)
    return encode(list(texts), prompt=given, output_value=None, show_progress_bar=False)


def kept_vectors(output: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The vectors of a raw output, float32 [tokens, dim]; 0 where a search uses none."""
    kept = output["attention_mask"].bool().unsqueeze(-1)
    found: npt.NDArray[np.float32] = (output["token_embeddings"] * kept).float().numpy()
    return found


def used(vectors: Vectors, kept: Kept) -> Vectors:
    """Vectors [rows, tokens, dim] of which those that no search uses are 0.

    `kept` is bool [rows, tokens]. What has another shape is given back as it is.
    """
    if vectors.ndim != kept.ndim + 1 or vectors.shape[:2] != kept.shape:
        return vectors
    return np.where(kept[..., None], vectors, np.float32(0))


def aligned(rows: Sequence[npt.NDArray[Any]], width: int, side: str) -> npt.NDArray[Any]:
    """Rows of unlike lengths in one array of this width, padded with 0 on a side and cut there."""
    found = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(found, rows, strict=True):
        if side == "left":
            place[max(0, width - len(row)) :] = row[-width:]
        else:
            place[: len(row)] = row[:width]
    return found


def late_at(home: Path, tokenizer: "Tokenizer") -> Late:
    """What a folder says; the attention mask alone decides where it says nothing."""
    said = read_object(home / "config_sentence_transformers.json")
    modules = read_modules(home)
    body = modules[0].folder if modules else home
    own = {**_lengths_of_pylate(said), **read_object(body / "sentence_bert_config.json")}
    masks = (read_object(m.folder / "config.json") for m in modules if m.kind == MASK)
    found = _skipping(next(masks, _mask_of_pylate(said)), tokenizer)
    filled = _filling(own.get("query_expansion"), home, tokenizer)
    lengths = {role: limit_of(own.get(f"{role}_length")) for role in _ROLES}
    return replace(found, **filled, lengths={r: n for r, n in lengths.items() if n is not None})


def _mask_of_pylate(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What PyLate leaves out: punctuation, unless it says otherwise."""
    usual = list(string.punctuation) if said.get("model_type") == PYLATE else []
    words = said.get("skiplist_words")
    return {"skiplist_words": usual if words is None else words}


def _lengths_of_pylate(said: Mapping[str, Any]) -> dict[str, Any]:
    """PyLate's own keys in the words of sentence-transformers; none for other folders."""
    if said.get("model_type") != PYLATE:
        return {}
    lengths = {name: said[name] for name in ("query_length", "document_length") if said.get(name)}
    if "query_expansion" in said:
        return {**lengths, "query_expansion": said["query_expansion"]}
    if said.get("do_query_expansion") is False:
        return lengths
    length = lengths.pop("query_length", _USUAL_FILL)
    attend = said.get("attend_to_expansion_tokens", said.get("attend_to_mask_tokens"))
    return {**lengths, "query_expansion": {"strategy": _FIXED, "length": length, "attend": attend}}


def _skipping(mask: Mapping[str, Any], tokenizer: "Tokenizer") -> Late:
    ids = (tokenizer.token_to_id(word) for word in mask.get("skiplist_words") or ())
    tasks = mask.get("skiplist_tasks") or [DOCUMENT]
    return Late(tuple(sorted({i for i in ids if i is not None})), tuple(tasks))


def _filling(said: Mapping[str, Any] | None, home: Path, tokenizer: "Tokenizer") -> dict[str, Any]:
    if not said:
        return {}
    named = (special_token(home, name) for name in ("mask_token", "eos_token"))
    token = said.get("token") or next(filter(None, named), "")
    return {
        "fill": int(said["length"]),
        "fixed": said.get("strategy") == _FIXED,
        "filler": tokenizer.token_to_id(token) or 0,
        "attend": bool(said.get("attend")),
    }
