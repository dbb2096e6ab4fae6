"""What refreshes and --gate-history noted, run by run, and where it changed."""

import datetime
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_type_hints

from enginegate.errors import BaselineError
from enginegate.files import damage, locked, parse_json, read_text, reading, write_atomic
from enginegate.machine import git
from enginegate.results import Result
from enginegate.variants import checked_name

FOLDER = "history"
_REFERENCE = "onnxruntime "  # how the name of the reference begins
_PENALTY = 3.0  # times variance and log of the number of runs
_FEWEST = 3  # runs on either side of a change point


@dataclass(frozen=True)
class Note:
    """One batch size of one variant in one run.

    Attributes:
        date: UTC, ISO 8601.
        commit: of the project, abbreviated; empty outside git.
        variant: key of the variant.
        batch: texts per call.
        p50_s: median seconds of one call.
        log_ratio: mean over the replicates of log(engine / yardstick).
        reference: runtime of the yardstick, or the engine that it was timed beside.
    """

    date: str
    commit: str
    variant: str
    batch: int
    p50_s: float
    log_ratio: float
    reference: str

    @property
    def beside(self) -> str:
        """The engine that it was timed beside; empty for the reference."""
        return "" if self.reference.startswith(_REFERENCE) else self.reference

    @property
    def texts_per_s(self) -> float:
        """Throughput at the median call."""
        return self.batch / self.p50_s


@dataclass(frozen=True)
class Series:
    """The notes of one variant and batch size on one machine beside one yardstick, oldest first."""

    machine: str
    notes: tuple[Note, ...]

    @property
    def title(self) -> str:
        """The name of what the series is of."""
        note = self.notes[0]
        beside = f" beside {note.beside}" if note.beside else ""
        return f"{self.machine} {note.variant} batch {note.batch}{beside}"

    @property
    def log_ratios(self) -> list[float]:
        """Log of (engine / yardstick) of each run."""
        return [note.log_ratio for note in self.notes]


def append_history(results: Iterable[Result], root: Path, machine: str, rootpath: Path) -> None:
    """Add a line per batch size to `root/history/<machine>/<model>.jsonl`.

    The file is written anew, whole or not at all. Raises BaselineError, or FileError.
    """
    commit = git(rootpath, "describe", "--always", "--dirty").stdout.strip()
    lines: dict[str, list[str]] = {}
    for result in results:
        noted = (json.dumps(asdict(note), allow_nan=False) for note in _notes(result, commit))
        lines.setdefault(result.variant.model, []).extend(noted)
    for model, added in lines.items():
        path = root / FOLDER / machine / f"{checked_name(model)}.jsonl"
        with locked(path):
            write_atomic(path, _before(path) + "".join(f"{line}\n" for line in added))


def _before(path: Path) -> str:
    """The notes so far, which are kept as they are, but a line that was begun is ended."""
    if not path.exists():
        return ""
    with _reading(path):
        text = read_text(path)
    return text if not text or text.endswith("\n") else f"{text}\n"


def _reading(path: Path) -> AbstractContextManager[None]:
    way_out = "remove the line, or restore the file with git"
    return reading(path, "history", way_out, BaselineError)


def _notes(result: Result, commit: str) -> Iterator[Note]:
    now = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
    for speed in result.speeds:
        level = round(fmean(speed.log_ratios["p50"]), 5)
        p50_s = float(f"{speed.p50_s:.5g}")
        beside, _, _ = result.context.against.partition(",")
        reference = beside or result.context.reference
        yield Note(now, commit, result.variant.key, speed.batch, p50_s, level, reference)


def read_history(root: Path, model: str) -> list[Series]:
    """All series of a model. Raises BaselineError if there is none or a line is not valid."""
    series: dict[tuple[str, str, int, str], list[Note]] = {}
    for path in sorted(root.glob(f"{FOLDER}/*/*.jsonl")):
        for note in _read(path) if path.stem == model else ():
            key = path.parent.name, note.variant, note.batch, note.beside
            series.setdefault(key, []).append(note)
    if not series:
        raise BaselineError(
            f"no history of {model} in {root / FOLDER}: run pytest with --gate-history or refresh"
        )
    return [Series(machine, tuple(notes)) for (machine, *_), notes in sorted(series.items())]


def _read(path: Path) -> Iterator[Note]:
    with _reading(path):
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            try:
                yield _note(**parse_json(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"line {number} is not a note: {damage(error)}") from error


def _note(**stored: Any) -> Note:
    """A note of what is stored. Raises TypeError."""
    note = Note(**stored)
    for name, kind in get_type_hints(Note).items():
        value = getattr(note, name)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise TypeError(f"{name} is {value!r}")
    return note


def change_points(values: Sequence[float]) -> list[int]:
    """Indices at which the mean of `values` changes.

    Optimal partitioning (Jackson et al. 2005, IEEE Signal Processing Letters 12): the segments with
    the smallest sum of squared errors and penalties. A penalty is 3 s² log n with s from the
    successive differences, so that a step does not widen it.
    """
    count = len(values)
    if count < 2 * _FEWEST:
        return []
    penalty = _PENALTY * _noise(values) ** 2 * math.log(count)
    sums = [0.0, *itertools.accumulate(values)]
    squares = [0.0, *itertools.accumulate(value * value for value in values)]

    def cost(start: int, end: int) -> float:
        mean = (sums[end] - sums[start]) / (end - start)
        return squares[end] - squares[start] - mean * (sums[end] - sums[start]) + penalty

    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # cost and starts up to an index
    for end in range(_FEWEST, count + 1):
        starts = [start for start in best if start <= end - _FEWEST]
        best[end] = min((best[s][0] + cost(s, end), [*best[s][1], s]) for s in starts)
    return best[count][1][1:]


def _noise(values: Sequence[float]) -> float:
    """Standard deviation from the median absolute successive difference, for normal noise."""
    steps = sorted(abs(b - a) for a, b in itertools.pairwise(values))
    return max(steps[len(steps) // 2] / (0.6745 * math.sqrt(2)), 1e-4)


def describe_history(series: Iterable[Series]) -> Iterator[str]:
    """A line per series, one with its figures at first, and one per change point in it."""
    for found in series:
        values = found.log_ratios
        yield f"{found.title}: {len(values)} runs, {found.notes[0].date[:10]} to {_last(found)}"
        edges = [0, *change_points(values), len(values)]
        yield f"  at first {_figures(found.notes[: edges[1]])}"
        for start, middle, end in zip(edges, edges[1:], edges[2:], strict=False):
            step = math.expm1(fmean(values[middle:end]) - fmean(values[start:middle]))
            note = found.notes[middle]
            when = f"{note.date} ({note.commit or 'no commit'})"
            yield f"  {step:+.1%} from {when}: {_figures(found.notes[middle:end])}"


def _figures(notes: Sequence[Note]) -> str:
    """The median of the runs' latencies and throughputs."""
    p50_s = median(note.p50_s for note in notes)
    return f"p50 {1000 * p50_s:.3g} ms, {notes[0].batch / p50_s:.3g} texts/s"


def _last(series: Series) -> str:
    return series.notes[-1].date[:10]
