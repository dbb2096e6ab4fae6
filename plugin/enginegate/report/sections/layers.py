"""Which layers do the damage, and what keeping some of them in fp32 gives back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from enginegate.report.numbers import percent, short, times
from enginegate.report.page import Chart, Row, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.vega import Spec, colour, labels, number
from enginegate.report.table import engine_name
from enginegate.results import Result

_SHOWN = 12
_ROW_HEIGHT = 24  # pixels
_LETTERS = 26


def blame_charts(run: SavedRun) -> Iterator[Chart]:
    """A chart per engine whose damage was attributed to layers."""
    for result in run.results:
        if blamed := run.raw(result).get("blame"):
            yield _chart(result, blamed[:_SHOWN])


def _chart(result: Result, blamed: Sequence[Mapping[str, Any]]) -> Chart:
    title = f"{result.variant.model} {engine_name(result.variant)}: layers that do the damage"
    return Chart(
        title=title,
        reading="Share of the damage that goes when only this layer runs in fp32. Shares need not "
        "add up to 100 %: layers make each other's errors larger.",
        spec=_spec(str(result.variant.precision), blamed),
        table=Table(title, ("layer", "kind", "damage alone", "repairs"), tuple(map(_row, blamed))),
        height=_ROW_HEIGHT * len(blamed) + 50,
    )


def _row(layer: Mapping[str, Any]) -> Row:
    told = (short(layer["local_error"]), percent(layer["repaired_share"]))
    return (layer["layer"], layer["kind"], *told)


def _spec(precision: str, blamed: Sequence[Mapping[str, Any]]) -> Spec:
    ends = _ends([layer["layer"] for layer in blamed])
    values = [
        {
            "layer": label,
            "share": layer["repaired_share"],
            "name": precision,
            "said": f"{layer['layer']}: repairs {percent(layer['repaired_share'])}",
        }
        for label, layer in zip(ends, blamed, strict=True)
    ]
    shares = {"format": "%", "tickCount": 5}
    return {
        "data": {"values": values},
        "mark": {"type": "bar"},
        "encoding": {
            "y": labels("layer", ends),
            "x": number("share", "repaired share of the damage", axis=shares),
            "color": colour([precision], legend=False),
            "description": {"field": "said"},
        },
    }


def _ends(names: Sequence[str]) -> list[str]:
    """The ends of long names, for which a phone has room; numbered where they are alike."""
    ends = [name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}" for name in names]
    return [f"{n} {end}" if ends.count(end) > 1 else end for n, end in enumerate(ends, start=1)]


def repairs(run: SavedRun) -> Iterator[Table]:
    """Tables of what keeping layers in fp32 gives back, and of what it costs."""
    rows = tuple(
        (
            result.variant.model,
            engine_name(result.variant),
            ", ".join(found["kept"]) or "no layers are enough",
            percent(found["recovered_share"]),
            f"{times(found['speedup_before'])} to {times(found['speedup_after'])}",
        )
        for result in run.results
        if (found := run.raw(result).get("repair"))
    )
    header = ("model", "engine", "kept in fp32", "damage that goes", "speed to fp32")
    if rows:
        yield Table("Layers to keep in fp32", header, rows)
