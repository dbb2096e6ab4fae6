"""What load engines carry: throughput, latency, where they break, and where the time goes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from enginegate.report.numbers import NOTHING, milliseconds, times, whole
from enginegate.report.page import Chart, Row, Table
from enginegate.report.sections.vega import Spec, colour, decades, layer, number, points, titled
from enginegate.report.table import merged
from enginegate.report.wording.sweeps import analysis_lines, compare_engines
from enginegate.serving import Analysis, Breakdown, Level

_FEW = 12  # levels: more are drawn with smaller points
_HEADER = ("engine", "concurrency", "texts/s", "mean ms", "p50 ms", "p99 ms", "windows", "marks")
_RING = {
    "condition": {"test": "datum.slow", "value": "var(--limit)"},
    "value": "var(--card)",
}
_DIAMOND = {"condition": {"test": "datum.slow", "value": "diamond"}, "value": "circle"}
_PARTS = ("compute", "queue", "network", "client")
_READING = (
    "Mean milliseconds of a request: computing, waiting in the server's queue, in the client that "
    "makes the load, and all the rest: network and the server's front end."
)

Parts = tuple[int, Breakdown]


@dataclass(frozen=True)
class Sweep:
    """The levels of one engine, what they say, and what a request holds: texts or pairs."""

    name: str
    levels: tuple[Level, ...]
    analysis: Analysis
    counted: str = "texts"

    def is_slow(self, level: Level) -> bool:
        """Tell if a level lies in a cliff."""
        return any(c.first <= level.concurrency <= c.last for c in self.analysis.cliffs)


def largest(sweep: Sweep) -> float:
    """Its largest throughput, texts or pairs per second."""
    return max(level.throughput_per_s for level in sweep.levels)


def load_charts(model: str, sweeps: Sequence[Sweep]) -> Iterator[Chart]:
    """Throughput against latency, both over concurrency, and the parts of the latency."""
    yield _against(model, sweeps)
    yield _over(model, sweeps, "throughput")
    yield _over(model, sweeps, "latency")
    for sweep in sweeps:
        yield from _parts_of_time(titled(model, sweep.name), sweep.levels)


def _table(model: str, sweeps: Sequence[Sweep]) -> Table:
    rows = (_row(sweep, level) for sweep in sweeps for level in sweep.levels)
    header = tuple(name.replace("texts", sweeps[0].counted) for name in _HEADER)
    return Table(titled(model, "levels of load"), header, tuple(rows))


def _row(sweep: Sweep, level: Level) -> Row:
    cliff = ("in a cliff",) if sweep.is_slow(level) else ()
    return (
        sweep.name,
        str(level.concurrency),
        whole(level.throughput_per_s),
        *map(milliseconds, (level.latency.mean_s, level.latency.p50_s, level.latency.p99_s)),
        times(level.spread),
        "; ".join((*cliff, *level.marks)),
    )


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
        "said": _said(sweep, level),
    }


def _said(sweep: Sweep, level: Level) -> str:
    per_s = f"{whole(level.throughput_per_s)} {sweep.counted}/s"
    mean = milliseconds(level.latency.mean_s)
    return f"{sweep.name}, concurrency {level.concurrency}: {per_s}, {mean} ms"


def _known(seconds: float, otherwise: float) -> float:
    return otherwise if math.isnan(seconds) else seconds


def _points(sweeps: Sequence[Sweep], x: Spec, y: Spec) -> Spec:
    """Points, those in a cliff diamonds ringed in the colour of limits."""
    crowded = max(len(sweep.levels) for sweep in sweeps) > _FEW
    ink = colour([sweep.name for sweep in sweeps])
    ring = {**_RING, "value": "transparent"} if crowded else _RING
    channels = {"x": x, "y": y, "color": ink, "stroke": ring, "shape": _DIAMOND}
    return points(channels, size=28 if crowded else 70)


def _against(model: str, sweeps: Sequence[Sweep]) -> Chart:
    return Chart(
        title=titled(model, "throughput against latency"),
        reading=(
            "Each point is a level of load, joined in the order of concurrency; down and right is "
            f"better. {_bars_in_words(sweeps)}{_cliffs_in_words(sweeps)}"
        ),
        spec=_against_spec(sweeps),
        table=_table(model, sweeps),
        height=380,
    )


def _bars_in_words(sweeps: Sequence[Sweep]) -> str:
    if all(math.isnan(level.latency.p99_s) for sweep in sweeps for level in sweep.levels):
        return ""
    return "Bars: latency from p50 to p99, throughput as far as its windows spread. "


def _cliffs_in_words(sweeps: Sequence[Sweep]) -> str:
    found = [(sweep.name, cliff) for sweep in sweeps for cliff in sweep.analysis.cliffs]
    said = ", ".join(f"{name} at concurrency {c.first} to {c.last}" for name, c in found)
    return f"Ringed diamonds are cliffs: {said}." if said else "No cliff was found."


def _against_spec(sweeps: Sequence[Sweep]) -> Spec:
    values, ink = _values(sweeps), colour([sweep.name for sweep in sweeps])
    throughputs, latencies = (_with_bars(values, name) for name in ("throughput", "latency"))
    x = {"field": "throughput", "title": f"{sweeps[0].counted} per second", **throughputs}
    y = {"field": "latency", "title": "latency, ms", **latencies}
    upright = {"x": x, "y": {**y, "field": "latency_low"}, "y2": {"field": "latency_high"}}
    level = {"x": {**x, "field": "throughput_low"}, "x2": {"field": "throughput_high"}, "y": y}
    return {
        "data": {"values": values},
        "layer": [
            layer("rule", {**upright, "color": ink}, opacity=0.55),
            layer("rule", {**level, "color": ink}, opacity=0.55),
            layer(
                "line",
                {"x": x, "y": y, "color": ink, "order": {"field": "concurrency"}},
                strokeWidth=2,
            ),
            _points(sweeps, x, y),
        ],
    }


def _with_bars(values: Sequence[dict[str, Any]], name: str) -> Spec:
    """A logarithmic axis that the points and their bars fit on."""
    return decades(value[end] for value in values for end in (name, f"{name}_low", f"{name}_high"))


def _over(model: str, sweeps: Sequence[Sweep], figure: str) -> Chart:
    band = "p50 to p99" if figure == "latency" else "how far its windows spread"
    title = titled(model, f"{figure} over concurrency")
    return Chart(
        title=title,
        reading=f"Band: {band}. Shaded: cliffs.",
        spec=_over_spec(sweeps, figure),
        table=Table(title, ("concurrency", *(s.name for s in sweeps)), _by_level(sweeps, figure)),
        height=280,
        small=True,
    )


def _by_level(sweeps: Sequence[Sweep], figure: str) -> tuple[Row, ...]:
    """A row per concurrency, a column per engine: texts per second, or mean milliseconds."""
    told = {
        (sweep.name, level.concurrency): (
            milliseconds(level.latency.mean_s)
            if figure == "latency"
            else whole(level.throughput_per_s)
        )
        for sweep in sweeps
        for level in sweep.levels
    }
    return tuple(
        (str(number), *(told.get((sweep.name, number), NOTHING) for sweep in sweeps))
        for number in sorted({concurrency for _, concurrency in told})
    )


def _over_spec(sweeps: Sequence[Sweep], figure: str) -> Spec:
    ink = colour([sweep.name for sweep in sweeps])
    x = number("concurrency", "concurrency")
    per_s = f"{sweeps[0].counted} per second"
    y = number(figure, "latency, ms" if figure == "latency" else per_s)
    low = {**y, "field": f"{figure}_low", "stack": None}
    band = {"x": x, "y": low, "y2": {"field": f"{figure}_high"}, "color": ink}
    return {
        "data": {"values": _values(sweeps)},
        "layer": [
            *_shade(sweeps, x),
            layer("area", band, opacity=0.2),
            layer("line", {"x": x, "y": y, "color": ink}, strokeWidth=2),
            _points(sweeps, x, y),
        ],
    }


def _shade(sweeps: Sequence[Sweep], x: Spec) -> Iterator[Spec]:
    """Shade the cliffs."""
    cliffs = {(c.first, c.last) for sweep in sweeps for c in sweep.analysis.cliffs}
    values = [{"from": first - 0.5, "to": last + 0.5} for first, last in sorted(cliffs)]
    if values:
        ends = {"x": {**x, "field": "from"}, "x2": {"field": "to"}}
        yield {"data": {"values": values}} | layer("rect", ends, color="var(--limit)", opacity=0.13)


def what_sweeps_say(sweeps: Sequence[Sweep]) -> Iterator[str]:
    """Cliffs with their causes, saturation, and the engines beside each other, in words."""
    yield from merged(
        (sweep.name, line)
        for sweep in sweeps
        for line in analysis_lines(sweep.analysis, sweep.levels)
    )
    if len(sweeps) > 1:
        yield from compare_engines({sweep.name: sweep.levels for sweep in sweeps})


def _parts_of_time(engine: str, levels: Sequence[Level]) -> Iterator[Chart]:
    """A chart, if the server told; stacked bars by concurrency."""
    known = [(level.concurrency, level.breakdown) for level in levels if level.breakdown]
    if known:
        rows = tuple(_parts_row(*parts) for parts in known)
        header = ("concurrency", *_PARTS, "together")
        yield Chart(
            title=f"{engine}, where a request's time goes",
            reading=_READING,
            spec=_parts_spec(known),
            table=Table(f"{engine}, mean milliseconds of a request", header, rows),
            height=240,
            small=True,
        )


def _seconds(parts: Breakdown) -> dict[str, float]:
    seconds = (parts.compute_s, parts.queue_s, parts.network_s, parts.client_s)
    return dict(zip(_PARTS, seconds, strict=True))


def _parts_row(concurrency: int, parts: Breakdown) -> Row:
    found = _seconds(parts).values()
    return (str(concurrency), *map(milliseconds, found), milliseconds(sum(found)))


def _parts_spec(known: Sequence[Parts]) -> Spec:
    values = [
        {
            "concurrency": concurrency,
            "part": part,
            "ms": 1e3 * max(0.0, seconds),
            "order": _PARTS.index(part),
            "said": f"concurrency {concurrency}, {part}: {milliseconds(seconds)} ms",
        }
        for concurrency, parts in known
        for part, seconds in _seconds(parts).items()
    ]
    scale = {"domain": list(_PARTS), "range": [f"var(--{part})" for part in _PARTS]}
    upright = {"labelAngle": 0}
    return {
        "data": {"values": values},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "concurrency", "type": "ordinal", "axis": upright},
            "y": number("ms", "ms"),
            "color": {"field": "part", "type": "nominal", "scale": scale},
            "order": number("order", ""),
            "description": {"field": "said"},
        },
    }
