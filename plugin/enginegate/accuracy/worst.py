"""The texts that lost most: what they are, how long, and what a search finds for them now."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginegate.accuracy.bootstrap import Values
from enginegate.accuracy.deltas import Array
from enginegate.accuracy.retrieval import Names, Vectors, nearest, similarities

_WORST = 10
_NEIGHBOURS = 3


@dataclass(frozen=True)
class WorstText:
    """A text whose embedding is far off.

    Attributes:
        index: among the evaluation texts.
        text: as it was before it was cut.
        tokens: that the model saw, padding not counted.
        cosine: of its two vectors.
        neighbours_before: the three nearest other texts by the reference, nearest first.
        neighbours_after: the same by the engine.
    """

    index: int
    text: str
    tokens: int
    cosine: float
    neighbours_before: tuple[str, ...]
    neighbours_after: tuple[str, ...]


def worst_texts(
    cosines: Values, found: Array, expected: Array, texts: Sequence[str], tokens: Sequence[int]
) -> tuple[WorstText, ...]:
    """Up to ten texts with the smallest cosines [texts], smallest first.

    `found` and `expected` are the engine's and the reference's vectors [texts, dim].
    """
    names = Names(texts)
    before, after = (nearest(similarities(Vectors(v)), _NEIGHBOURS) for v in (expected, found))
    return tuple(
        WorstText(
            index=row,
            text=texts[row],
            tokens=tokens[row],
            cosine=float(cosines[row]),
            neighbours_before=tuple(names.document(row, int(column)) for column in before[row]),
            neighbours_after=tuple(names.document(row, int(column)) for column in after[row]),
        )
        for row in map(int, np.argsort(cosines, kind="stable")[:_WORST])
    )
