"""What is said of blamed layers. Their numbers are formatted here."""

from collections.abc import Iterator, Sequence

from enginegate.diagnostics import Blamed, Repair, Step
from enginegate.report.numbers import counted
from enginegate.report.page import Row, Table

_HEADER = ("layer", "kind", "alone", "repairs")
_STEP_HEADER = ("kept", "damage gone", "speedup", "limits")
_SHOWN = 10


def blame_table(asked: str, layers: Sequence[Blamed]) -> Table:
    """The layers that repair most, of the variant that was asked for under that name."""
    shown = layers[:_SHOWN]
    rest = f", first {_SHOWN} of {len(layers)} tried" if len(layers) > _SHOWN else ""
    title = f"{asked}: layers by the share of the damage that goes when one runs in fp32{rest}"
    return Table(title, _HEADER, tuple(map(_row, shown)))


def repair_table(asked: str, repair: Repair) -> Table:
    """The attempts on the way to a repair, fewest layers first."""
    title = f"{asked}: layers kept in fp32, and what that gives"
    return Table(title, _STEP_HEADER, tuple(map(_step_row, repair.steps)))


def repair_lines(repair: Repair) -> Iterator[str]:
    """The effect of kept layers on the speed; nothing where none were enough."""
    if repair.configuration:
        speeds = f"{repair.speedup_before:.2f} to {repair.speedup_after:.2f} x the control"
        yield f"repair: {counted(len(repair.kept), 'layer')} kept in fp32, {speeds} at batch 8"


def configuration_table(asked: str, repair: Repair) -> Table:
    """The lines to commit."""
    lines = tuple((line,) for line in repair.configuration.splitlines())
    return Table(f"{asked}: to keep these layers without a search, in pyproject.toml:", (), lines)


def _step_row(step: Step) -> Row:
    return (
        str(len(step.kept)),
        f"{100 * step.recovered_share:.0f} %",
        f"{step.speedup:.2f}",
        "within" if step.enough else "beyond",
    )


def _row(layer: Blamed) -> Row:
    return (
        layer.layer,
        layer.kind,
        f"{layer.local_error:.1e}",
        f"{100 * layer.repaired_share:.0f} %",
    )
