"""What load engines carry: throughput, latency, where they break, and where the time goes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from enginegate.cliffs import Analysis
from enginegate.levels import Breakdown, Level
from enginegate.report.drawing import colours, decades, titled
from enginegate.report.page import Chart, Row, Table
from enginegate.report.wording import times, whole
from enginegate.sweep_text import analysis_lines, compare_engines
from enginegate.table import milliseconds

_PARTS = ("compute", "queue", "network")
_FEW = 12  # levels: more are drawn with smaller points
_HEADER = ("engine", "concurrency", "texts/s", "mean ms", "p50 ms", "p99 ms", "windows", "marks")
_RING = {
    "condition": {"test": "datum.slow", "value": "var(--limit)"},
    "value": "var(--card)",
}


@dataclass(frozen=True)
class Sweep:
    """The levels of one engine, and what they say."""

    name: str
    levels: tuple[Level, ...]
    analysis: Analysis

    def is_slow(self, level: Level) -> bool:
        """Whether a level lies in a cliff."""
        return any(c.first <= level.concurrency <= c.last for c in self.analysis.cliffs)


def largest(sweep: Sweep) -> float:
    """Its largest throughput, texts per second."""
    return max(level.throughput_per_s for level in sweep.levels)


def load_charts(model: str, sweeps: Sequence[Sweep]) -> Iterator[Chart]:
    """Throughput against latency, both over concurrency, and the parts of the latency."""
    table = _table(model, sweeps)
    yield _against(model, sweeps, table)
    yield _over(model, sweeps, table, "throughput")
    yield _over(model, sweeps, table, "latency")
    for sweep in sweeps:
        if any(level.breakdown for level in sweep.levels):
            yield _parts(model, sweep)


def _table(model: str, sweeps: Sequence[Sweep]) -> Table:
    rows = (_row(sweep, level) for sweep in sweeps for level in sweep.levels)
    return Table(titled(model, "levels of load"), _HEADER, tuple(rows))


def _row(sweep: Sweep, level: Level) -> Row:
    cliff = ("in a cliff",) if sweep.is_slow(level) else ()
    return (
        sweep.name,
        str(level.concurrency),
        whole(level.throughput_per_s),
        *(_ms(level, figure) for figure in ("mean", "p50", "p99")),
        times(level.spread),
        "; ".join((*cliff, *level.marks)),
    )


def _ms(level: Level, figure: str) -> str:
    seconds = getattr(level.latency, f"{figure}_s")
    return milliseconds(None if math.isnan(seconds) else seconds)


def _values(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    return [_value(sweep, level) for sweep in sweeps for level in sweep.levels]


def _value(sweep: Sweep, level: Level) -> dict[str, Any]:
    half = math.sqrt(level.spread)
    latency = level.latency
    return {
        "name": sweep.name,
        "concurrency": level.concurrency,
        "throughput": level.throughput_per_s,
        "throughput_low": level.throughput_per_s / half,
        "throughput_high": level.throughput_per_s * half,
        "latency": 1e3 * latency.mean_s,
        "latency_low": 1e3 * _known(latency.p50_s, latency.mean_s),
        "latency_high": 1e3 * _known(latency.p99_s, latency.mean_s),
        "slow": sweep.is_slow(level),
        "said": (
            f"{sweep.name}, concurrency {level.concurrency}: {whole(level.throughput_per_s)} "
            f"texts/s, {milliseconds(latency.mean_s)} ms"
        ),
    }


def _known(seconds: float, otherwise: float) -> float:
    return otherwise if math.isnan(seconds) else seconds


def _points(sweeps: Sequence[Sweep], x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """Points, those in a cliff hollow and ringed in the colour of limits."""
    names = [sweep.name for sweep in sweeps]
    crowded = max(len(sweep.levels) for sweep in sweeps) > _FEW
    size = {"size": 28, "strokeWidth": 1} if crowded else {"size": 70, "strokeWidth": 2}
    return {
        "mark": {"type": "point", "filled": True, "opacity": 1, **size},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "name", "type": "nominal", "scale": colours(names)},
            "stroke": _RING,
            "shape": {"condition": {"test": "datum.slow", "value": "diamond"}, "value": "circle"},
            "description": {"field": "said"},
        },
    }


def _against(model: str, sweeps: Sequence[Sweep], table: Table) -> Chart:
    return Chart(
        title=titled(model, "throughput against latency"),
        reading=(
            "Each point is a level of load, joined in the order of concurrency; down and right is "
            "better. Bars: latency from p50 to p99, throughput as far as its windows spread. "
            f"{_cliffs_in_words(sweeps)}"
        ),
        spec=_against_spec(sweeps),
        table=table,
        height=380,
    )


def _cliffs_in_words(sweeps: Sequence[Sweep]) -> str:
    found = [(sweep.name, cliff) for sweep in sweeps for cliff in sweep.analysis.cliffs]
    said = ", ".join(f"{name} at concurrency {c.first} to {c.last}" for name, c in found)
    return f"Ringed diamonds are cliffs: {said}." if said else "No cliff was found."


def _against_spec(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    names = [sweep.name for sweep in sweeps]
    colour = {"field": "name", "type": "nominal", "scale": colours(names)}
    values = _values(sweeps)
    throughputs = decades(value["throughput"] for value in values)
    latencies = decades(value["latency"] for value in values)
    x = {"field": "throughput", "title": "texts per second", **throughputs}
    y = {"field": "latency", "title": "latency, ms", **latencies}
    thin = {"type": "rule", "opacity": 0.55}
    return {
        "data": {"values": values},
        "layer": [
            {
                "mark": thin,
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "latency_low"},
                    "y2": {"field": "latency_high"},
                    "color": colour,
                },
            },
            {
                "mark": thin,
                "encoding": {
                    "x": {**x, "field": "throughput_low"},
                    "x2": {"field": "throughput_high"},
                    "y": y,
                    "color": colour,
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "color": colour, "order": {"field": "concurrency"}},
            },
            _points(sweeps, x, y),
        ],
    }


def _over(model: str, sweeps: Sequence[Sweep], table: Table, figure: str) -> Chart:
    band = "p50 to p99" if figure == "latency" else "how far its windows spread"
    return Chart(
        title=titled(model, f"{figure} over concurrency"),
        reading=f"Band: {band}. Shaded: cliffs.",
        spec=_over_spec(sweeps, figure),
        table=table,
        height=280,
        small=True,
    )


def _over_spec(sweeps: Sequence[Sweep], figure: str) -> dict[str, Any]:
    names = [sweep.name for sweep in sweeps]
    colour = {"field": "name", "type": "nominal", "scale": colours(names)}
    x = {"field": "concurrency", "type": "quantitative", "title": "concurrency"}
    title = "latency, ms" if figure == "latency" else "texts per second"
    y = {"field": figure, "type": "quantitative", "title": title}
    cliffs = [
        {"from": cliff.first - 0.5, "to": cliff.last + 0.5}
        for sweep in sweeps
        for cliff in sweep.analysis.cliffs
    ]
    shade = {
        "data": {"values": cliffs},
        "mark": {"type": "rect", "color": "var(--limit)", "opacity": 0.13},
        "encoding": {"x": {**x, "field": "from"}, "x2": {"field": "to"}},
    }
    return {
        "data": {"values": _values(sweeps)},
        "layer": [
            *([shade] if cliffs else []),
            {
                "mark": {"type": "area", "opacity": 0.2},
                "encoding": {
                    "x": x,
                    "y": {**y, "field": f"{figure}_low", "stack": None},
                    "y2": {"field": f"{figure}_high"},
                    "color": colour,
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "color": colour},
            },
            _points(sweeps, x, y),
        ],
    }


def _parts(model: str, sweep: Sweep) -> Chart:
    known = [(level, level.breakdown) for level in sweep.levels if level.breakdown]
    return Chart(
        title=titled(model, f"{sweep.name}, where a request's time goes"),
        reading="Mean milliseconds of a request: computing, waiting in the server's queue, and "
        "what the server did not count.",
        spec=_parts_spec([(level.concurrency, parts) for level, parts in known]),
        table=Table(
            titled(model, f"{sweep.name}, mean milliseconds of a request"),
            ("concurrency", *_PARTS, "together"),
            tuple(_parts_row(level, parts) for level, parts in known),
        ),
        height=240,
        small=True,
    )


def _parts_s(parts: Breakdown) -> dict[str, float]:
    compute_s = parts.compute_input_s + parts.compute_infer_s + parts.compute_output_s
    return dict(zip(_PARTS, (compute_s, parts.queue_s, parts.network_s), strict=True))


def _parts_row(level: Level, parts: Breakdown) -> Row:
    seconds = _parts_s(parts)
    return (
        str(level.concurrency),
        *map(milliseconds, seconds.values()),
        milliseconds(sum(seconds.values())),
    )


def _parts_spec(known: Sequence[tuple[int, Breakdown]]) -> dict[str, Any]:
    values = [
        {
            "concurrency": concurrency,
            "part": part,
            "ms": 1e3 * max(0.0, seconds),
            "order": _PARTS.index(part),
            "said": f"concurrency {concurrency}, {part}: {milliseconds(seconds)} ms",
        }
        for concurrency, parts in known
        for part, seconds in _parts_s(parts).items()
    ]
    scale = {"domain": list(_PARTS), "range": [f"var(--{part})" for part in _PARTS]}
    return {
        "data": {"values": values},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {
                "field": "concurrency",
                "type": "ordinal",
                "axis": {"labelAngle": 0, "labelOverlap": True},
            },
            "y": {"field": "ms", "type": "quantitative", "title": "ms"},
            "color": {"field": "part", "type": "nominal", "scale": scale},
            "order": {"field": "order", "type": "quantitative"},
            "description": {"field": "said"},
        },
    }


def what_sweeps_say(sweeps: Sequence[Sweep]) -> Iterator[str]:
    """Cliffs with their causes, saturation, and the engines beside each other, in words."""
    for sweep in sweeps:
        yield from (f"{sweep.name}: {line}" for line in analysis_lines(sweep.analysis))
    if len(sweeps) > 1:
        yield from compare_engines({sweep.name: sweep.levels for sweep in sweeps})
