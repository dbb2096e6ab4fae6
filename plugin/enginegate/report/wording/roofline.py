"""Costs and rooflines in words and rows. Their numbers are formatted here."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from enginegate.diagnostics import (
    BACKBONE,
    HEAD,
    Cost,
    Count,
    Device,
    Layer,
    Point,
    Roofline,
    Traffic,
    thop_flops,
    true_flops,
)

TRAFFIC = {
    Traffic.WEIGHTS: "every weight once, activations stay in a cache",
    Traffic.FUSED: "every weight once, and what matrix products read and write",
    Traffic.UNFUSED: "every weight once, and what every operator reads and writes",
}


def cost_line(name: str, cost: Cost | str, seq_len: int) -> str:
    """The FLOPs of one text, by both counts."""
    if isinstance(cost, str):
        return f"{name}: FLOPs not counted: {cost}"
    least = "at least " if cost.uncounted else ""
    lacking = f"; not counted: {', '.join(cost.uncounted)}" if cost.uncounted else ""
    true, thop = (_by_part(cost, count, seq_len) for count in (true_flops, thop_flops))
    return (
        f"{name}: FLOPs of a text of {seq_len} tokens: {least}{true}; thop counts {thop}{lacking}"
    )


def _by_part(cost: Cost, count: Count, seq_len: int) -> str:
    whole, head = (count(layers)(1, seq_len) for layers in (cost.layers, cost.of(HEAD)))
    return f"{whole:,} (head {head:,})"


def device_line(device: Device) -> str:
    """The ceilings of a device."""
    peaks = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in device.peaks_per_s.items())
    memory = ", ".join(f"{m.name} {m.bytes_per_s / 1e9:.0f}" for m in device.memory)
    return f"{device.name}: {peaks} GFLOP/s; {memory} GB/s ({device.source})"


def roofline_line(asked: str, roofline: Roofline, measured: Mapping[int, float]) -> str:
    """`int8: roofline: backbone memory-bound up to batch 2, …; 61 % of the limit at batch 8`."""
    bounds = [
        f"{name} {roofline.bound(layers)}"
        for name, layers in roofline.parts.items()
        if name in (BACKBONE, HEAD)
    ]
    points = [roofline.point(batch, seconds) for batch, seconds in sorted(measured.items())]
    return "; ".join([f"{asked}: roofline: {', '.join(bounds)}", *map(_share, points)])


def _share(point: Point) -> str:
    if point.efficiency is None:
        return f"not measured at batch {point.batch}"
    if point.warning:
        return f"beyond the limit at batch {point.batch}, so a ceiling is wrong"
    return f"{100 * point.efficiency:.0f} % of the limit at batch {point.batch}"


def roofline_rows(roofline: Roofline, batches: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """A row per part: up to where it is memory-bound, and its intensities; a row of floors.

    Blocks of which the same is true share a row.
    """
    precision = roofline.setting.precision
    rows = ((name, _part(roofline, layers, batches)) for name, layers in roofline.parts.items())
    for cells, alike in groupby(rows, key=lambda row: row[1]):
        first, *others = (name for name, _ in alike)
        more = f" and {len(others)} more alike" if others else ""
        yield (precision, f"{first}{more}", *cells)
    floors = (f"{1e3 * roofline.floor_s(batch):.3g} ms" for batch in batches)
    yield (precision, "whole model", "no call is faster than", "", *floors)


def _part(roofline: Roofline, layers: Sequence[Layer], batches: Sequence[int]) -> tuple[str, ...]:
    found = (f"{roofline.intensity(layers, batch):.3g}" for batch in batches)
    return (str(roofline.bound(layers)), f"{roofline.ridge:.3g}", *found)
