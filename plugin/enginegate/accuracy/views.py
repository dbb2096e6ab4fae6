"""The same embeddings looked at otherwise: their first numbers alone, or stored in fewer bits.

Each view shows an engine's embeddings and the reference's in the same way, from one run of either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from enginegate.accuracy.bootstrap import Values
from enginegate.accuracy.deltas import Array, Deltas, compare
from enginegate.accuracy.limits import UNLIMITED, Limits
from enginegate.accuracy.retrieval import (
    NEAR,
    Retrieval,
    Vectors,
    cosines_between,
    nearest,
    similarities,
)
from enginegate.errors import ModelError
from enginegate.models import BINARY, INT8, ModelSpec
from enginegate.verdicts import Judgement

_UNIT = 1e-3  # a length of 1 in fp16 is off by less
_LEVELS = 256  # of a stored int8
_MORE = 2  # times as many are taken to be scored again: the default of sentence-transformers
_BELOW = 4.0  # more than two cosines can differ by

Store = Callable[[Array], Array]


@dataclass(frozen=True)
class View:
    """A way to look at embeddings.

    Attributes:
        name: what reports call it; empty for the embeddings as they are.
        deltas: of an engine's to the reference's, both [texts, dim]; None where it has none.
            Raises EmbeddingError for embeddings that are not sane.
        similar: similarities [queries, documents].
        limits: those that hold in it, of those of the engine.
    """

    name: str
    deltas: Callable[[Array, Array], Deltas | None]
    similar: Callable[[Vectors], Values]
    limits: Callable[[Limits], Limits]


@dataclass(frozen=True)
class Viewed:
    """What is known of an engine's embeddings in a view.

    Attributes:
        name: of the view.
        judgement: by the limits that hold in it.
        deltas: None where it has none, or where the embeddings are not sane in it.
        retrieval: what a search finds; None where the embeddings are not sane in it.
    """

    name: str
    judgement: Judgement
    deltas: Deltas | None = None
    retrieval: Retrieval | None = None


def views_of(spec: ModelSpec, expected: Array, calibration: Array | None) -> tuple[View, ...]:
    """The views that a model's table asks for: `dims`, then `stored` without and with rescoring.

    `expected` are the reference's embeddings [texts, dim], `calibration` those of other texts, by
    which int8 is scaled. Raises ModelError as `check_dims` does.
    """
    check_dims(spec, expected)
    stores: dict[str, Store] = {BINARY: as_binary}
    if calibration is not None:
        stores[INT8] = int8_by(calibration)
    stored = (_stored_views(kind, stores[kind]) for kind in spec.stored)
    return (*dimension_views(spec.dims, expected), *(view for pair in stored for view in pair))


def check_dims(spec: ModelSpec, expected: Array) -> None:
    """Raise ModelError if `dims` names more dimensions than embeddings [texts, dim] have."""
    width = expected.shape[1]
    if beyond := [dim for dim in spec.dims if dim > width]:
        raise ModelError(
            f"model {spec.name}: dims = {beyond}, and its embeddings have {width} numbers: give at "
            f"most {width} in [tool.enginegate.models.{spec.name}]"
        )


def dimension_views(dims: Sequence[int], expected: Array) -> tuple[View, ...]:
    """Views of the first numbers, scaled to length 1 where the embeddings `expected` are."""
    unit = has_unit_length(expected)
    return tuple(_dimension_view(dim, expected.shape[1], unit=unit) for dim in dims)


def has_unit_length(vectors: Array) -> bool:
    """Tell if every embedding, [texts, dim], has the length 1."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return bool((np.abs(lengths - 1) < _UNIT).all())


def first_numbers(vectors: Array, dim: int, *, unit: bool) -> Array:
    """The first `dim` numbers of embeddings [texts, width], scaled to length 1 with `unit`."""
    kept = vectors[:, :dim]
    if not unit:
        return kept
    lengths = np.linalg.norm(kept.astype(np.float64), axis=1, keepdims=True)
    scaled: Array = kept / np.where(lengths > 0, lengths, 1)
    return scaled


def _dimension_view(dim: int, width: int, *, unit: bool) -> View:
    def cut(vectors: Array) -> Array:
        return first_numbers(vectors, dim, unit=unit)

    return View(
        name=f"first {dim} of {width} dimensions",
        deltas=lambda found, expected: compare(cut(found), cut(expected)),
        similar=lambda vectors: similarities(_shown(vectors, cut)),
        limits=lambda limits: limits,
    )


def _shown(vectors: Vectors, show: Store) -> Vectors:
    documents = vectors.documents
    return Vectors(show(vectors.queries), None if documents is None else show(documents))


def int8_by(calibration: Array) -> Store:
    """Store each number as one of 256 levels between its extremes in a sample [texts, dim].

    As `quantize_embeddings` of sentence-transformers does, numbers beyond the sample's extremes
    being those; given back as the middle of the level, float64.
    """
    low, high = calibration.min(axis=0), calibration.max(axis=0)
    step = np.where(high > low, (high - low) / (_LEVELS - 1), 1).astype(np.float64)

    def store(vectors: Array) -> Array:
        level = np.clip(np.floor((vectors - low) / step), 0, _LEVELS - 1)
        stored: Array = low + (level + 0.5) * step
        return stored

    return store


def as_binary(vectors: Array) -> Array:
    """Store the sign of each number alone, given back as 1 and -1; 0 counts as negative.

    The cosine of two such vectors is 1 less twice the share of bits that differ (Hamming).
    """
    return np.where(vectors > 0, 1.0, -1.0)


def _stored_views(kind: str, store: Store) -> tuple[View, View]:
    """Searched by what is stored alone; and by it first, then by the query as it is."""

    def stored(vectors: Vectors) -> Values:
        return similarities(_shown(vectors, store))

    def rescored(vectors: Vectors) -> Values:
        return _rescored(stored(vectors), cosines_between(vectors, store))

    return (
        View(f"stored as {kind}", _none, stored, _limits_of(f"{kind}_recall_at_10")),
        View(
            f"stored as {kind}, rescored",
            _none,
            rescored,
            _limits_of(f"{kind}_rescored_recall_at_10"),
        ),
    )


def _rescored(first: Values, again: Values) -> Values:
    """The nearest of a first search by their second scores, all others behind them in order."""
    taken = np.zeros(first.shape, dtype=bool)
    np.put_along_axis(taken, nearest(first, _MORE * NEAR), values=True, axis=1)
    return np.where(taken, again, first - _BELOW)


def _none(_found: Array, _expected: Array) -> None:
    return None


def _limits_of(name: str) -> Callable[[Limits], Limits]:
    """The one limit of a stored view, which is on the ten nearest."""
    return lambda limits: replace(UNLIMITED, recall_at_10=getattr(limits, name))
