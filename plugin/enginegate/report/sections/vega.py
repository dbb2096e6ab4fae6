"""Parts of Vega-Lite specifications: layers, channels, and the scales that all pictures share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

Spec = dict[str, Any]

_ROOM = 1.3  # factor beside the outermost points of a logarithmic axis
_FOR_NAMES = 0.2
_LETTER = 7  # pixels of a label, so that the widest font has room
_INK = {"fp32": "--fp32", "fp16": "--fp16", "bf16": "--bf16", "int8": "--int8", "best": "--best"}
_SHAPES = {"fp32": "circle", "fp16": "square", "bf16": "diamond", "int8": "triangle-up"}


def titled(model: str, title: str) -> str:
    """The title of a chart of one of several models, or of the only one, which is then empty."""
    return f"{model}: {title}" if model else title[:1].upper() + title[1:]


def layer(mark: str, encoding: Spec, **style: Any) -> Spec:
    """One layer of a picture."""
    return {"mark": {"type": mark, **style}, "encoding": encoding}


def points(encoding: Spec, size: int = 80) -> Spec:
    """A layer of filled points with the text `said` as tooltip."""
    described = {**encoding, "description": {"field": "said"}}
    return layer("point", described, filled=True, size=size, opacity=1)


def number(field: str, title: str, **other: Any) -> Spec:
    """A channel of numbers."""
    return {"field": field, "type": "quantitative", "title": title, **other}


def colour(names: Sequence[str], *, legend: bool = True) -> Spec:
    """A channel that gives the precision in `name` its colour, on every picture the same."""
    return _by_name(
        names, [f"var({_INK.get(_precision(n), '--other')})" for n in names], legend=legend
    )


def shape(names: Sequence[str], *, legend: bool = True) -> Spec:
    """A channel of point shapes, so that colour is never the only difference."""
    return _by_name(
        names, [_SHAPES.get(_precision(name), "cross") for name in names], legend=legend
    )


def _by_name(names: Sequence[str], shown: Sequence[str], *, legend: bool) -> Spec:
    scale = {"domain": list(names), "range": list(shown)}
    channel = {"field": "name", "type": "nominal", "scale": scale}
    return channel if legend else {**channel, "legend": None}


def labels(field: str, names: Sequence[str]) -> Spec:
    """A channel of rows with room for the longest name."""
    axis = {"labelLimit": 0, "ticks": False, "minExtent": _LETTER * max(map(len, names))}
    return {"field": field, "type": "nominal", "sort": None, "title": None, "axis": axis}


def _precision(name: str) -> str:
    return name.partition(" ")[0].lower()


def decades(values: Iterable[float]) -> Spec:
    """A logarithmic axis with ticks at 1, 2 and 5 of the decades that `values` span."""
    found = list(values)
    return _log(found, (1, 2, 5), "~s" if min(found, default=1) >= 1 else "~g")


def powers_of_ten(values: Iterable[float]) -> Spec:
    """A logarithmic axis with ticks at the powers of ten, and room for names on the right."""
    return _log(values, (1,), ".0e", named=True)


def _log(values: Iterable[float], digits: Iterable[int], form: str, *, named: bool = False) -> Spec:
    """`named`: leave a sixth of the axis on the right, where names may stand."""
    found = [value for value in values if value > 0] or [1.0]
    low, high = min(found) / _ROOM, max(found) * _ROOM
    high *= (high / low) ** _FOR_NAMES if named else 1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    return {
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {"values": ticks, "format": form, "labelOverlap": True},
    }
