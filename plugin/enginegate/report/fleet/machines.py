"""Embeddings of one engine on two kinds of machines, compared with each other."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enginegate.accuracy import Deltas, disagreement
from enginegate.errors import EmbeddingError, ReportError
from enginegate.report.fleet.parts import Engine, Part, Sampled


@dataclass(frozen=True)
class Pair:
    """An engine of one recipe on two machines.

    Attributes:
        model, precision: what was asked for.
        parts: the two reports.
        deltas: of the second's embeddings to the first's.
        broken: limits of the precision that these break, in words.
    """

    model: str
    precision: str
    parts: tuple[Part, Part]
    deltas: Deltas
    broken: tuple[str, ...]

    @property
    def where(self) -> str:
        """`x86 and arm`."""
        return " and ".join(part.kind or part.machine for part in self.parts)


_Found = tuple[Part, Engine, Sampled]


def compared_machines(parts: Sequence[Part]) -> list[Pair]:
    """Every engine of one recipe and the same texts, for each two kinds that it ran on."""
    alike: dict[tuple[str, str, str], list[_Found]] = {}
    for part in parts:
        for engine in part.engines:
            for sampled in engine.samples:
                key = (engine.model, engine.precision, sampled.recipe)
                alike.setdefault(key, []).append((part, engine, sampled))
    return [pair for found in alike.values() for pair in _pairs(found)]


def _pairs(found: Sequence[_Found]) -> Iterator[Pair]:
    for (one, engine, then), (other, _, now) in itertools.combinations(found, 2):
        try:
            deltas, broken = disagreement(then.sample, now.sample, then.limits)
        except EmbeddingError as error:
            raise ReportError(
                f"the embeddings of {engine.model} {engine.precision} in {one.file} and "
                f"{other.file} cannot be compared: {error}; run again"
            ) from error
        yield Pair(engine.model, engine.precision, (one, other), deltas, broken)
