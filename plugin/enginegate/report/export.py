"""A saved run for other programs: CSV, OpenMetrics, and the JSON that shields.io makes a badge of.

Every text may come from a stranger's model: none becomes a formula, a line or a label of its own.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from enginegate.errors import OptionError
from enginegate.files import for_page, readable_json, write_atomic
from enginegate.report.compose import headline, matrix_of
from enginegate.report.decision import decided
from enginegate.report.page import Decision
from enginegate.report.saved_run import SavedRun, decode_run, read_report
from enginegate.results import Result
from enginegate.serving import Level
from enginegate.speed import Speed

_FIGURES = {  # name with its unit: what it is
    "min_cosine": "Smallest cosine between a text's embedding and the reference's.",
    "max_delta": "Largest absolute difference of a component to the reference.",
    "size_bytes": "Size of the engine.",
    "latency_mean_seconds": "Mean time of a request.",
    "latency_p50_seconds": "Median time of a call or request.",
    "latency_p99_seconds": "99th percentile of the time of a call or request.",
    "throughput_texts_per_second": "Texts per second.",
    "speedup_ratio": "Time of the reference, on a GPU of fp32 there, / time of the engine.",
    "change_ratio": "Time now / time in the baseline.",
    "change_low_ratio": "Lower end of its interval.",
    "change_high_ratio": "Upper end of its interval.",
    "detectable_ratio": "Smallest slowdown that would have been found, 0.07 for 7 %.",
}
_UNITS = ("bytes", "texts_per_second", "seconds", "ratio")
_KEY = ("model", "precision", "backend", "served")
_ENGINE = (*_KEY, "runtime", "decision", "embeddings", "speed")
_COLORS = {Decision.BLOCK: "red", Decision.HOLD: "yellow"}
_FORMULA = re.compile(r"\s*[=+\-@]")

Labels = Mapping[str, str]
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Exported:
    """An engine: what is said of it, its own figures, and those of each batch size or level."""

    labels: Labels
    reason: str
    next: str
    values: Values
    cells: tuple[tuple[Labels, Values], ...]


def export_files(
    file: Path, csv_to: Path | None, openmetrics: Path | None, badge: Path | None
) -> Iterator[str]:
    """Write a saved run in the forms that are asked for; the lines to print.

    Raises OptionError without any form, ReportError or FileError.
    """
    run = decode_run(read_report(file), file.stem, str(file))
    makers: tuple[tuple[Path | None, Callable[[SavedRun], str]], ...]
    makers = ((csv_to, as_csv), (openmetrics, as_openmetrics), (badge, as_badge))
    if not any(path for path, _ in makers):
        raise OptionError("export as what? give --csv, --openmetrics or --badge, with a file")
    for path, make in makers:
        if path:
            write_atomic(path, make(run))
            yield f"wrote {path}"


def _exported(run: SavedRun) -> Iterator[Exported]:
    for result in run.results:
        found = decided(result, run.whole.get("interrupted", ""))
        deltas = result.accuracy.deltas if result.accuracy else None
        yield Exported(
            labels=dict(zip(_ENGINE, _texts(result, found.decision), strict=True)),
            reason=found.reason,
            next=found.next,
            values={
                "min_cosine": deltas.cosine_worst if deltas else None,
                "max_delta": deltas.max_abs if deltas else None,
                "size_bytes": float(result.size_bytes),
            },
            cells=tuple(_cells(result)),
        )


def _texts(result: Result, decision: Decision) -> tuple[str, ...]:
    variant = result.variant
    served = "true" if variant.served else "false"
    verdicts = (str(result.embedding_verdict), str(result.speed_verdict))
    key = (variant.model, str(variant.precision), variant.backend, served)
    return (*key, result.backend, str(decision), *verdicts)


def _cells(result: Result) -> Iterator[tuple[Labels, Values]]:
    """Figures by batch size; of a served engine by concurrency, with those of its changes."""
    reference = not result.context.against
    speeds = {speed.batch: _speed(speed, reference=reference) for speed in result.speeds}
    levels = {one.concurrency: _level(one) for one in (result.load.levels if result.load else ())}
    for number in sorted({*speeds, *levels}):
        yield {result.cell: str(number)}, {**speeds.get(number, {}), **levels.get(number, {})}


def _speed(speed: Speed, *, reference: bool) -> Values:
    change = speed.change
    return {
        "latency_p50_seconds": speed.p50_s,
        "latency_p99_seconds": speed.p99_s[1] if speed.p99_s else None,
        "throughput_texts_per_second": speed.texts_per_s,
        "speedup_ratio": speed.yardstick_ratio if reference else None,
        "change_ratio": change.ratio if change else None,
        "change_low_ratio": change.low if change else None,
        "change_high_ratio": change.high if change else None,
        "detectable_ratio": change.visible if change else None,
    }


def _level(level: Level) -> Values:
    return {
        "latency_mean_seconds": level.latency.mean_s,
        "latency_p50_seconds": level.latency.p50_s,
        "latency_p99_seconds": level.latency.p99_s,
        "throughput_texts_per_second": level.throughput_per_s,
    }


def as_csv(run: SavedRun) -> str:
    """A line per engine and batch size, or level of load; what is not known is left empty."""
    header = (*_ENGINE, "batch", "concurrency", *_FIGURES, "reason", "next", "date", "commit")
    origin = run.whole.get("origin", {})
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(header)
    for engine in _exported(run):
        said = {"reason": engine.reason, "next": engine.next, **engine.labels}
        said |= {name: origin.get(name, "") for name in ("date", "commit")}
        for labels, values in engine.cells or (({}, {}),):
            numbers = _known({**engine.values, **values})
            row = {**_safe({**said, **labels}), **numbers}
            writer.writerow([row.get(name, "") for name in header])
    return written.getvalue()


def _known(values: Values) -> dict[str, str]:
    """The figures that are numbers, as text that loses nothing."""
    known = {name: value for name, value in values.items() if value is not None}
    return {name: repr(value) for name, value in known.items() if math.isfinite(value)}


def _safe(texts: Labels) -> dict[str, str]:
    """One line each, and nothing that a spreadsheet takes for a formula."""
    lines = {name: " ".join(for_page(text).split()) for name, text in texts.items()}
    return {n: f"'{text}" if _FORMULA.match(text) else text for n, text in lines.items()}


def as_openmetrics(run: SavedRun) -> str:
    """The figures as gauges, and what is said of each engine as labels of an info."""
    engines = list(_exported(run))
    told = (f"enginegate_engine_info{_labels(engine.labels)} 1" for engine in engines)
    lines = [*_head("enginegate_engine", "info", "", "What is said of each engine."), *told]
    for name, what in _FIGURES.items():
        unit = next((unit for unit in _UNITS if name.endswith(f"_{unit}")), "")
        if samples := list(_samples(engines, name)):
            lines += [*_head(f"enginegate_{name}", "gauge", unit, what), *samples]
    return "\n".join([*lines, "# EOF", ""])


def _head(name: str, kind: str, unit: str, what: str) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield from [f"# UNIT {name} {unit}"] if unit else []
    yield f"# HELP {name} {what}"


def _samples(engines: Iterable[Exported], name: str) -> Iterator[str]:
    for engine in engines:
        key = {label: engine.labels[label] for label in _KEY}
        for labels, values in (({}, engine.values), *engine.cells):
            if name in (known := _known(values)):
                yield f"enginegate_{name}{_labels({**key, **labels})} {known[name]}"


def _labels(labels: Labels) -> str:
    return f"{{{','.join(f'{name}={_quoted(text)}' for name, text in labels.items())}}}"


def _quoted(text: str) -> str:
    escaped = for_page(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def as_badge(run: SavedRun) -> str:
    """The endpoint JSON of shields.io: what may ship, in the colour of the gravest decision."""
    matrix = matrix_of(run)
    gravest = matrix.gravest
    color = _COLORS.get(gravest, "brightgreen") if gravest else "lightgrey"
    message = headline(matrix)
    return readable_json(
        {"schemaVersion": 1, "label": "enginegate", "message": message, "color": color}
    )
