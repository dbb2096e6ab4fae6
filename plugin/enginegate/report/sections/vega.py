"""Parts of Vega-Lite specifications: layers, channels, and the scales that all pictures share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

Spec = dict[str, Any]
Axes = tuple[Spec, Spec]
Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

WIDE, SLIM = 736, 328  # pixels: a large picture on a screen, and on a phone
_ROOM = 1.3  # factor beside the outermost points of a logarithmic axis
_LETTER = 7  # pixels of a label, so that the widest font has room
_SIGN, _LINE = 30, 14  # pixels: a sign in a legend with the room around, a line of a label
_AXES = (70, 90)  # pixels that axes and a legend take of a picture's width and height
_LEAST_LOSS = 1e-7  # of 1 - cosine; below it an axis would show nothing but rounding
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
    return {**channel, "legend": _legend(names) if legend else None}


def _legend(names: Sequence[str]) -> Spec:
    """In one row where a phone has room for that, else in columns."""
    widths = [_SIGN + _LETTER * len(name) for name in names] or [_SIGN]
    return {} if sum(widths) <= SLIM else {"columns": max(1, SLIM // max(widths))}


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


def losses(title: str, values: Iterable[float]) -> Spec:
    """A logarithmic channel of `loss` with ticks at the powers of ten; the least is marked."""
    found = list(values)
    channel = _log(map(drawn_loss, found), (1,), ".0e")
    if least_in_words(found):
        marked = f"(datum.value < {1.01 * _LEAST_LOSS} ? '≤ ' : '') + datum.label"
        channel["axis"]["labelExpr"] = marked
    return {"field": "loss", "title": title, **channel}


def drawn_loss(loss: float) -> float:
    """Where it is drawn on such an axis."""
    return max(loss, _LEAST_LOSS)


def least_in_words(values: Iterable[float]) -> str:
    """The sentence on losses that are drawn at the least one; empty where there is none."""
    few = any(value < _LEAST_LOSS for value in values)
    return (
        f" What is below {_LEAST_LOSS:.0e} is drawn at the mark ≤ {_LEAST_LOSS:.0e}." if few else ""
    )


def apart(texts: Sequence[str], places: Sequence[Place], axes: Axes, height: int) -> list[str]:
    """The texts beside points of a picture with two logarithmic axes; empty where two would touch.

    A phone's width decides, where they are nearest to each other.
    """
    room = (SLIM - _AXES[0], height - _AXES[1])
    spots = [_pixels(place, axes, room) for place in places]
    taken: list[Box] = [(left - 5, top - 5, left + 5, top + 5) for left, top in spots]
    kept = []
    for text, (left, top) in zip(texts, spots, strict=True):
        box = (left + 6, top - _LINE / 2, left + 8 + _LETTER * len(text), top + _LINE / 2)
        free = not any(_touch(box, other) for other in taken)
        taken += [box] if free else []
        kept.append(text if free else "")
    return kept


def _pixels(place: Place, axes: Axes, room: tuple[int, int]) -> Place:
    shares = [_share(value, axis) for value, axis in zip(place, axes, strict=True)]
    return shares[0] * room[0], (1 - shares[1]) * room[1]


def _share(value: float, axis: Spec) -> float:
    low, high = map(math.log, axis["scale"]["domain"])
    return (math.log(value) - low) / (high - low)


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _log(values: Iterable[float], digits: Iterable[int], form: str) -> Spec:
    found = [value for value in values if value > 0] or [1.0]
    low, high = min(found) / _ROOM, max(found) * _ROOM
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    return {
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {"values": ticks, "format": form},
    }
