"""A forest plot: ratios of time with their intervals, a row each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from enginegate.report.page import Chart, Row, Table
from enginegate.report.sections.vega import Spec, colour, labels, layer, number, points
from enginegate.speed import Change, describe

_ROW_HEIGHT = 26  # pixels
_BEYOND = 1.1
_LEAST, _MOST = 0.5, 2.0

Ends = tuple[float, float]


@dataclass(frozen=True)
class Compared:
    """A row.

    Attributes:
        label: what changed.
        precision: gives the colour.
        change: the ratio with its interval.
        told: the cells of the table beside the label.
    """

    label: str
    precision: str
    change: Change
    told: Row


def forest(
    title: str,
    reading: str,
    rows: Sequence[Compared],
    header: Row,
    limit: float | None = None,
) -> Chart:
    """The plot and its table. `header` names the label and what is told.

    `limit` is the largest slowdown that passes, 0.05 for 5 %; None where none was asked for.
    """
    return Chart(
        title=title,
        reading=reading,
        spec=_spec(rows, limit),
        table=Table(title, header, tuple((row.label, *row.told) for row in rows)),
        height=_ROW_HEIGHT * len(rows) + 60,
    )


def _values(rows: Sequence[Compared]) -> list[dict[str, Any]]:
    least, most = _edges([row.change for row in rows])
    return [
        {
            "label": row.label,
            "name": row.precision,
            "change": _per_cent(row.change.ratio),
            "low": _per_cent(max(row.change.low, least)),
            "high": _per_cent(min(row.change.high, most) if row.change.high > 0 else most),
            "said": f"{row.label}: {describe(row.change)}",
        }
        for row in rows
    ]


def _per_cent(ratio: float) -> float:
    return 100 * (ratio - 1)


def _edges(changes: Sequence[Change]) -> Ends:
    """As far as intervals are drawn: to half and twice the time, or beyond the farthest ratio."""
    ratios = [change.ratio for change in changes]
    return min(_LEAST, min(ratios) / _BEYOND), max(_MOST, max(ratios) * _BEYOND)


def _spec(rows: Sequence[Compared], limit: float | None) -> Spec:
    ink = colour(list(dict.fromkeys(row.precision for row in rows)), legend=False)
    axis = {"format": "+d", "tickCount": 6}
    low, middle = (number(end, "change of time, per cent", axis=axis) for end in ("low", "change"))
    bar = {"x": low, "x2": {"field": "high"}, "color": ink}
    return {
        "data": {"values": _values(rows)},
        "encoding": {"y": labels("label", [row.label for row in rows])},
        "layer": [
            layer("rule", {"x": {"datum": 0}, "y": None}),
            *([] if limit is None else [_limit(limit)]),
            layer("rule", bar, strokeWidth=3),
            points({"x": middle, "color": ink}),
        ],
    }


def _limit(limit: float) -> Spec:
    ends = {"x": {"datum": 100 * limit}, "y": None}
    return layer("rule", ends, color="var(--limit)", strokeDash=[5, 3])
