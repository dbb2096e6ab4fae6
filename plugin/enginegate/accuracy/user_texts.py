"""A user's own texts, embedded once by each engine, and what is computed from them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from enginegate.accuracy.bootstrap import Values
from enginegate.accuracy.collection import Collection, Pairs
from enginegate.accuracy.deltas import Array, cosines_of
from enginegate.accuracy.labels import Sts, compare_ndcg, compare_pairs
from enginegate.accuracy.retrieval import Names, Retrieval, Vectors, compare_rankings, similarities
from enginegate.errors import WorkloadError
from enginegate.models import DOCUMENT, QUERY, TEXT, Batch, Kept, used

Similar = Callable[[Vectors], Values]


@dataclass(frozen=True)
class UserData:
    """What the user gave.

    Attributes:
        collection: queries and documents; None if the workload has no roles.
        pairs: labelled pairs; None without --gate-sts.
    """

    collection: Collection | None = None
    pairs: Pairs | None = None

    @property
    def rows(self) -> dict[tuple[str, str], int]:
        """The row of every text in its role, each once, in order of appearance."""
        return {named: row for row, named in enumerate(dict.fromkeys(self._named()))}

    def _named(self) -> Iterator[tuple[str, str]]:
        if searched := self.collection:
            yield from ((QUERY, text) for text in searched.queries)
            yield from ((DOCUMENT, text) for text in searched.documents)
        if self.pairs:
            yield from ((TEXT, text) for text in (*self.pairs.a, *self.pairs.b))

    def batch(self, make: Callable[[str, Sequence[str]], Batch]) -> Batch:
        """All rows, made of the texts of one role at a time."""
        groups = groupby(self.rows, key=itemgetter(0))
        parts = [make(role, [text for _, text in members]) for role, members in groups]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def refuse_pairs(data: UserData, model: str) -> None:
    """Raise WorkloadError for labelled pairs beside a model that gives no one vector a text."""
    if data.pairs:
        raise WorkloadError(
            f"model {model} gives a vector for every token, and labelled pairs are judged by one a "
            "text: leave out --gate-sts"
        )


def refuse_labels(data: UserData, model: str) -> None:
    """Raise WorkloadError for labels, which are about embeddings, beside a model that scores."""
    if data.pairs or (data.collection and data.collection.gains is not None):
        raise WorkloadError(
            f"model {model} gives scores of pairs, which are judged beside its own only: leave out "
            "--gate-sts, and the lines of relevance in the workload"
        )


@dataclass(frozen=True)
class UserTexts:
    """The same, tokenised for a model and embedded by the reference.

    Attributes:
        data: what the user gave.
        batch: ONNX input name to tokens [texts, seq_len], of `data.rows`.
        expected: the reference's embeddings of them, float32 [texts, dim].
        kept: of vectors of tokens those that a search uses, bool [texts, seq_len]; else None.
    """

    data: UserData
    batch: Batch
    expected: Array
    kept: Kept | None = None

    def used(self, found: Array) -> Array:
        """A model's outputs for them; of tokens 0 for those that no search uses."""
        return found if self.kept is None else used(found, self.kept)

    def _rows(self, role: str, texts: Sequence[str]) -> npt.NDArray[np.intp]:
        rows = self.data.rows
        return np.array([rows[role, text] for text in texts])

    def rankings(self, found: Array, similar: Similar = similarities) -> Retrieval | None:
        """Compare what an engine's embeddings [texts, dim] find with what the reference finds."""
        searched = self.data.collection
        if searched is None:
            return None
        now, then = (similar(self._of(v, searched)) for v in (found, self.expected))
        retrieval = compare_rankings(now, then, Names(searched.queries, searched.documents))
        if searched.gains is None:
            return retrieval
        return replace(retrieval, ndcg_at_10=compare_ndcg(now, then, searched.gains))

    def _of(self, vectors: Array, searched: Collection) -> Vectors:
        queries = self._rows(QUERY, searched.queries)
        documents = self._rows(DOCUMENT, searched.documents)
        return Vectors(vectors[queries], vectors[documents])

    def agreement(self, found: Array) -> Sts | None:
        """Agreement of an engine's embeddings [texts, dim] with the labels."""
        pairs = self.data.pairs
        if pairs is None:
            return None
        a, b = self._rows(TEXT, pairs.a), self._rows(TEXT, pairs.b)
        now, then = (cosines_of(vectors[a], vectors[b]) for vectors in (found, self.expected))
        return compare_pairs(now, then, pairs.scores)
