"""Where a request's time goes: computing, waiting, travelling, in the client; by concurrency."""

from collections.abc import Iterator, Sequence

from enginegate.report.numbers import milliseconds
from enginegate.report.page import Chart, Row, Table
from enginegate.report.sections.vega import Spec, number
from enginegate.serving import Breakdown, Level

_PARTS = ("compute", "queue", "network", "client")
_READING = (
    "Mean milliseconds of a request: computing, waiting in the server's queue, in the client that "
    "makes the load, and all the rest: network and the server's front end."
)

Parts = tuple[int, Breakdown]


def parts_of_time(engine: str, levels: Sequence[Level]) -> Iterator[Chart]:
    """A chart, if the server told; stacked bars by concurrency."""
    known = [(level.concurrency, level.breakdown) for level in levels if level.breakdown]
    if known:
        rows = tuple(_row(*parts) for parts in known)
        header = ("concurrency", *_PARTS, "together")
        yield Chart(
            title=f"{engine}, where a request's time goes",
            reading=_READING,
            spec=_spec(known),
            table=Table(f"{engine}, mean milliseconds of a request", header, rows),
            height=240,
            small=True,
        )


def _seconds(parts: Breakdown) -> dict[str, float]:
    seconds = (parts.compute_s, parts.queue_s, parts.network_s, parts.client_s)
    return dict(zip(_PARTS, seconds, strict=True))


def _row(concurrency: int, parts: Breakdown) -> Row:
    found = _seconds(parts).values()
    return (str(concurrency), *map(milliseconds, found), milliseconds(sum(found)))


def _spec(known: Sequence[Parts]) -> Spec:
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
    upright = {"labelAngle": 0, "labelOverlap": True}
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
