"""A user's own data: queries and documents with relevance, and labelled pairs of texts.

Both are JSON Lines. Every error names the file and the line, and says what belongs there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginegate.accuracy.bootstrap import Values
from enginegate.errors import WorkloadError
from enginegate.files import parse_json, read_text, reading
from enginegate.models import DOCUMENT, QUERY

_FEWEST = 8
_MOST_SIMILARITIES = 50_000_000
_RELEVANCE = '{"query": "ID", "document": "ID", "relevance": 1}'
_PAIR = '{"a": "TEXT", "b": "TEXT", "score": 3.5}'

Line = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Collection:
    """What is searched for, and in what.

    Attributes:
        queries: their texts.
        documents: their texts.
        gains: relevance float64 [queries, documents], 0 where nothing is said; None if nothing is.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    gains: Values | None


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts, and how alike people found them.

    Attributes:
        a, b: the texts.
        scores: float64 [pairs], higher is more alike.
    """

    a: tuple[str, ...]
    b: tuple[str, ...]
    scores: Values


def read_collection(path: Path) -> Collection | None:
    """The queries and documents of a workload; None for a file in which no line has a role.

    Raises WorkloadError for a line without a role among others that have one, without a text, with
    an id that is there twice or not at all, with a relevance below 0, and for too few of either.
    """
    if path.suffix != ".jsonl":
        return None
    lines = list(_objects(path, strict=False))
    if not any("role" in value for _, value in lines):
        return None
    judgements = [line for line in lines if _is_judgement(line[1])]
    texts = [line for line in lines if not _is_judgement(line[1])]
    queries, documents = (_texts(path, texts, role) for role in (QUERY, DOCUMENT))
    _require_enough(path, len(queries), len(documents))
    gains = _gains(path, judgements, list(queries), list(documents)) if judgements else None
    return Collection(tuple(queries.values()), tuple(documents.values()), gains)


def read_pairs(path: Path) -> Pairs:
    """Labelled pairs. Raises WorkloadError for a pair that is not whole, or for too few of them."""
    found = [_pair(path, line) for line in _objects(path, strict=True)]
    scores = np.array([score for _, _, score in found])
    if len(found) < _FEWEST or np.ptp(scores) == 0:
        raise WorkloadError(
            f"{path} holds {len(found)} pairs with {len(set(scores.tolist()))} different scores: "
            f"at least {_FEWEST} pairs and two scores are needed"
        )
    return Pairs(tuple(a for a, _, _ in found), tuple(b for _, b, _ in found), scores)


def _objects(path: Path, *, strict: bool) -> Iterator[Line]:
    """Numbered objects; where `strict`, anything else is an error instead of left out."""
    with reading(path, "the texts", "give a UTF-8 .jsonl file", WorkloadError):
        lines = read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            value = _parsed(path, number, line)
            if isinstance(value, dict):
                yield number, value
            elif strict:
                raise _wrong(path, number, f"is not an object: give {_PAIR}")


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise _wrong(path, number, f"is not JSON: {error}") from error


def _is_judgement(value: Mapping[str, Any]) -> bool:
    return "role" not in value and QUERY in value and DOCUMENT in value


def _texts(path: Path, lines: Sequence[Line], role: str) -> dict[str, str]:
    """Texts of one role by their id, or by their line where they have none."""
    found: dict[str, str] = {}
    for number, value in lines:
        if value.get("role") not in (QUERY, DOCUMENT):
            raise _wrong(path, number, f'has no role: give "role": "{QUERY}" or "{DOCUMENT}"')
        if value["role"] == role:
            name = str(value.get("id", f"line {number}"))
            if name in found:
                raise _wrong(path, number, f"has the id {name!r} of another {role}: give its own")
            found[name] = _text(path, number, value, "text")
    return found


def _text(path: Path, number: int, value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise _wrong(path, number, f'has no {key}: give "{key}": "TEXT"')
    return text.strip()


def _require_enough(path: Path, queries: int, documents: int) -> None:
    if min(queries, documents) < _FEWEST:
        raise WorkloadError(
            f"workload {path} holds {queries} queries and {documents} documents: at least "
            f"{_FEWEST} of each are needed for an interval"
        )
    if queries * documents > _MOST_SIMILARITIES:
        raise WorkloadError(
            f"workload {path}: {queries} queries x {documents} documents are more than "
            f"{_MOST_SIMILARITIES} similarities: give fewer of either"
        )


def _gains(
    path: Path, judgements: Sequence[Line], queries: Sequence[str], documents: Sequence[str]
) -> Values:
    rows, columns = ({name: n for n, name in enumerate(names)} for names in (queries, documents))
    gains = np.zeros((len(queries), len(documents)))
    for number, value in judgements:
        row = _known(path, number, rows, QUERY, str(value[QUERY]))
        column = _known(path, number, columns, DOCUMENT, str(value[DOCUMENT]))
        gains[row, column] = _number(path, number, value, "relevance", _RELEVANCE)
    if (gains < 0).any() or not gains.any():
        raise WorkloadError(f"workload {path}: relevance must be 0 or more, and not 0 everywhere")
    return gains


def _known(path: Path, number: int, names: Mapping[str, int], role: str, name: str) -> int:
    if name not in names:
        raise _wrong(path, number, f"judges a {role} {name!r} that is not in the file: give its id")
    return names[name]


def _pair(path: Path, line: Line) -> tuple[str, str, float]:
    number, value = line
    a, b = (_text(path, number, value, key) for key in ("a", "b"))
    return a, b, _number(path, number, value, "score", _PAIR)


def _number(path: Path, number: int, value: Mapping[str, Any], key: str, example: str) -> float:
    found = value.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise _wrong(path, number, f"has {key} {found!r}, not a number: give {example}")
    return float(found)


def _wrong(path: Path, number: int, what: str) -> WorkloadError:
    return WorkloadError(f"{path}, line {number} {what}")
