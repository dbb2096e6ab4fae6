"""Pairs of a query and a document, for models that score them: which documents each query gets."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

PER_QUERY = 12  # documents of a query: some more than the ten that a user looks at
QUERIES = 32
CALIBRATION_QUERIES = 10
_ALIKE = PER_QUERY // 2  # of them share most words with the query; the others are from all over
_BETWEEN = " → "


@dataclass(frozen=True)
class Pairs:
    """Pairs, query by query, each with as many documents.

    Attributes:
        rows: (query, document).
        per_query: documents of each query.
    """

    rows: tuple[tuple[str, str], ...]
    per_query: int

    @property
    def queries(self) -> tuple[str, ...]:
        """Each once, in order."""
        return tuple(query for query, _ in self.rows[:: self.per_query])

    @property
    def shown(self) -> tuple[str, ...]:
        """Each pair in a line."""
        return tuple(_BETWEEN.join(row) for row in self.rows)


def split(texts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Queries and documents of texts that are neither: a fifth of them are queries."""
    first = max(3, len(texts) // 5)
    return texts[:first], texts[first:]


def pairs_of(queries: Sequence[str], documents: Sequence[str]) -> Pairs:
    """Every query with documents of its own: half of them by words in common, half from all over.

    A query that is among the documents is not paired with itself.
    """
    chosen = [_documents(query, documents) for query in queries]
    fewest = min(map(len, chosen))
    rows = ((q, d) for q, found in zip(queries, chosen, strict=True) for d in found[:fewest])
    return Pairs(tuple(rows), fewest)


def _documents(query: str, documents: Sequence[str]) -> list[str]:
    wanted = _words(query)
    others = [text for text in documents if text != query]
    others.sort(key=lambda text: -len(wanted & _words(text)) / len(wanted | _words(text)))
    rest = others[_ALIKE:]
    return [*others[:_ALIKE], *rest[:: max(1, len(rest) // (PER_QUERY - _ALIKE))]][:PER_QUERY]


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))
