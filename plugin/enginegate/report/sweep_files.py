"""Sweeps that something else measured.

CSV of our own columns or of perf_analyzer, or JSON of AIPerf or genai-perf, a file per level.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from enginegate.errors import ServingError
from enginegate.files import parse_json, read_text, reading
from enginegate.serving import Latency, Level

CSV_COLUMNS = ("engine", "concurrency", "infer_per_sec", "avg_latency_usec")
_RATE, _LOAD = "Inferences/Second", "Concurrency"
_PARTS = (  # of a request's mean time, microseconds, in a file of perf_analyzer
    "Client Send", "Network+Server Send/Recv", "Server Queue", "Server Compute Input",
    "Server Compute Infer", "Server Compute Output", "Client Recv",
)  # fmt: skip
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
_RATES = ("requests/sec", "req/sec", "requests/second")
_TOLD = ("p50", "p90", "p95", "p99", "max")
_ANEW = "give the JSON that AIPerf or genai-perf writes of a run at one concurrency"

Sweeps = dict[str, tuple[Level, ...]]


def read_sweeps(paths: Sequence[Path]) -> Sweeps:
    """Levels by engine of all the files; those of JSON files by concurrency.

    Raises ServingError for a file that cannot be read, or a level that is there twice.
    """
    sweeps: Sweeps = {}
    for path in paths:
        found = read_sweep_json(path) if path.suffix == ".json" else read_sweep_csv(path)
        for engine, levels in found.items():
            for level in levels:
                if twice := _added(sweeps, engine, level):
                    raise ServingError(f"{path}: {twice}: give the files of one engine at a time")
    return {engine: _in_order(levels, paths) for engine, levels in sweeps.items()}


def _in_order(levels: tuple[Level, ...], paths: Sequence[Path]) -> tuple[Level, ...]:
    """Of several files by concurrency; of one in its own order."""
    return levels if len(paths) == 1 else tuple(sorted(levels, key=lambda x: x.concurrency))


def read_sweep_json(path: Path) -> Sweeps:
    """The level that a file of AIPerf or genai-perf tells, by the name of its model.

    A request counts as one text. Raises ServingError.
    """
    with reading(path, "the sweep", _ANEW, ServingError):
        whole = parse_json(read_text(path).removeprefix("\ufeff"))
        if not isinstance(whole, dict):
            raise TypeError(f"{type(whole).__name__} instead of an object")
        if whole.get("was_cancelled"):
            raise ValueError("the run was cancelled: its figures are of a part of it")
        config = whole.get("input_config") or {}
        return {_model(config): (_of_json(whole, _concurrency(config)),)}


def _of_json(whole: Mapping[str, Any], concurrency: int) -> Level:
    rate, time = whole["request_throughput"], whole["request_latency"]
    if rate["unit"] not in _RATES:
        raise ValueError(f"request_throughput is in {rate['unit']!r}, not in {_RATES[0]}")
    unit_us = _SECONDS[time["unit"]] * 1e6
    seen = {f"{name}_s": time[name] * unit_us * 1e-6 for name in _TOLD if name in time}
    level = _made(concurrency, float(rate["avg"]), time["avg"] * unit_us, seen, _failed(whole))
    if not _is_possible(level):
        raise ValueError("concurrency, throughput and latency must be above 0")
    return level


def _failed(whole: Mapping[str, Any]) -> tuple[str, ...]:
    """The mark of a level that did not answer everything."""
    failed = (whole.get("error_request_count") or {}).get("avg") or 0
    return (f"{failed:.0f} requests failed and are not counted",) if failed else ()


def _concurrency(config: Mapping[str, Any]) -> int:
    """Of AIPerf's profiling phase or load generator, or of genai-perf's stimulus or option."""
    measured = [p for p in config.get("phases") or () if p.get("kind", p["name"]) == "profiling"]
    places = [phase for phase in measured if phase.get("type") == "concurrency"]
    stimulus = (config.get("perf_analyzer") or {}).get("stimulus")
    places += [] if measured else [config.get("loadgen"), stimulus, config]
    found = [place["concurrency"] for place in places if place and place.get("concurrency")]
    if len(measured) > 1 or not found:
        raise ValueError("it is not of one run at one concurrency")
    return int(found[0])


def _model(config: Mapping[str, Any]) -> str:
    """The names of what was asked, as either tool of either age tells them."""
    models, endpoint = config.get("models") or {}, config.get("endpoint") or {}
    items = models.get("items", ()) if isinstance(models, dict) else models
    named = [item["name"] if isinstance(item, dict) else item for item in items]
    old = endpoint.get("model_names") if isinstance(endpoint, dict) else None
    found = named or old or config.get("model_names") or config.get("model") or ["the model"]
    return ", ".join(map(str, [found] if isinstance(found, str) else found))


def read_sweep_csv(path: Path) -> Sweeps:
    """Levels by engine, in the order of the file: of CSV_COLUMNS, or as perf_analyzer writes it.

    A file of perf_analyzer is of one engine, which is named after it. Latencies that are not told
    are NaN. Raises ServingError, with the line, for a file that cannot be read or holds something
    else.
    """
    sweeps: Sweeps = {}
    for line, row in _rows(path):
        engine, level = row.get(CSV_COLUMNS[0]) or path.stem, _level(path, line, row)
        if twice := _added(sweeps, engine, level):
            raise _wrong(path, line, twice)
    return sweeps


def _added(sweeps: Sweeps, engine: str, level: Level) -> str:
    """Add a level; what is wrong with that, empty if nothing is."""
    known = sweeps.get(engine, ())
    if any(other.concurrency == level.concurrency for other in known):
        return f"concurrency {level.concurrency} of {engine} is there twice"
    sweeps[engine] = (*known, level)
    return ""


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of each line and its row; the header is line 1."""
    with reading(path, "the sweep", f"give a CSV file of {','.join(CSV_COLUMNS)}", ServingError):
        lines = read_text(path).removeprefix("\ufeff").splitlines()  # a byte order mark
        separator = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
        reader = csv.DictReader(lines, strict=True, delimiter=separator)
        try:
            if not _is_known(reader.fieldnames or ()):
                raise _wrong(path, 1, f"the columns are {reader.fieldnames}")
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error


def _is_known(columns: Sequence[str]) -> bool:
    return tuple(columns) == CSV_COLUMNS or {_LOAD, _RATE, *_PARTS} <= set(columns)


def _level(path: Path, line: int, row: Mapping[str, str]) -> Level:
    try:
        level = _told(row) if _LOAD in row else _own(row)
    except (TypeError, ValueError) as error:
        raise _wrong(path, line, str(error)) from error
    if not _is_possible(level):
        raise _wrong(path, line, "all three numbers must be above 0")
    return level


def _is_possible(level: Level) -> bool:
    numbers = (level.throughput_per_s, level.latency.mean_s)
    return level.concurrency >= 1 and all(0 < number < math.inf for number in numbers)


def _own(row: Mapping[str, str]) -> Level:
    per_s, mean_us = (float(row[name]) for name in CSV_COLUMNS[2:])
    return _made(int(row["concurrency"]), per_s, mean_us, {})


def _told(row: Mapping[str, str]) -> Level:
    """A level as perf_analyzer tells it, whose parts of a request are all of its mean time."""
    told = {n: row.get(f"p{n} latency") for n in (50, 90, 95, 99)}
    seen = {f"p{n}_s": float(text) * 1e-6 for n, text in told.items() if text}
    return _made(int(row[_LOAD]), float(row[_RATE]), sum(float(row[name]) for name in _PARTS), seen)


def _made(
    concurrency: int,
    per_s: float,
    mean_us: float,
    seen: Mapping[str, float],
    marks: tuple[str, ...] = (),
) -> Level:
    unknown = dict.fromkeys(("p50_s", "p90_s", "p95_s", "p99_s", "max_s"), math.nan)
    latency = Latency(mean_us * 1e-6, **{**unknown, **seen})
    return Level(concurrency, per_s, latency, marks=marks)


def _wrong(path: Path, line: int, what: str) -> ServingError:
    wanted = ",".join(CSV_COLUMNS)
    return ServingError(f"{path}, line {line}: {what}; each line must hold {wanted}")
