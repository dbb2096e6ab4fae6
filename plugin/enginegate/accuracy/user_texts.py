"""A user's own texts, embedded once by each engine, and what is computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from enginegate.accuracy.bootstrap import Values
from enginegate.accuracy.collection import Collection, Pairs
from enginegate.accuracy.deltas import Array, cosines_of
from enginegate.accuracy.labels import Sts, compare_ndcg, compare_pairs
from enginegate.accuracy.retrieval import Names, Retrieval, Vectors, compare_rankings, similarities
from enginegate.models import Batch


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
    def texts(self) -> tuple[str, ...]:
        """Every text once, in order of appearance."""
        searched = self.collection
        found = [*searched.queries, *searched.documents] if searched else []
        found += [*self.pairs.a, *self.pairs.b] if self.pairs else []
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class UserTexts:
    """The same, tokenised for a model and embedded by the reference.

    Attributes:
        data: what the user gave.
        batch: ONNX input name to tokens [texts, seq_len], of `data.texts`.
        expected: the reference's embeddings of them, float32 [texts, dim].
    """

    data: UserData
    batch: Batch
    expected: Array

    def _rows(self, texts: Sequence[str]) -> npt.NDArray[np.intp]:
        places = {text: place for place, text in enumerate(self.data.texts)}
        return np.array([places[text] for text in texts])

    def rankings(self, found: Array) -> Retrieval | None:
        """Compare what an engine's embeddings [texts, dim] find with what the reference finds."""
        searched = self.data.collection
        if searched is None:
            return None
        now, then = (self._similar(vectors, searched) for vectors in (found, self.expected))
        retrieval = compare_rankings(now, then, Names(searched.queries, searched.documents))
        if searched.gains is None:
            return retrieval
        return replace(retrieval, ndcg_at_10=compare_ndcg(now, then, searched.gains))

    def _similar(self, vectors: Array, searched: Collection) -> Values:
        queries, documents = (self._rows(x) for x in (searched.queries, searched.documents))
        return similarities(Vectors(vectors[queries], vectors[documents]))

    def agreement(self, found: Array) -> Sts | None:
        """Agreement of an engine's embeddings [texts, dim] with the labels."""
        pairs = self.data.pairs
        if pairs is None:
            return None
        a, b = self._rows(pairs.a), self._rows(pairs.b)
        now, then = (cosines_of(vectors[a], vectors[b]) for vectors in (found, self.expected))
        return compare_pairs(now, then, pairs.scores)
