"""What is said of blamed layers. Their numbers are formatted here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enginegate.diagnostics import Blamed, Repair, Step

_HEADER = ("layer", "kind", "alone", "repairs")
_STEP_HEADER = ("kept", "damage gone", "x ref", "limits")
_SHOWN = 10


@dataclass(frozen=True)
class Table:
    """Rows of equal length under a title; the first row is the header."""

    title: str
    rows: tuple[tuple[str, ...], ...]


def blame_table(asked: str, layers: Sequence[Blamed]) -> Table:
    """The layers that repair most, of the variant that was asked for under that name."""
    shown = layers[:_SHOWN]
    rest = f", first {_SHOWN} of {len(layers)} tried" if len(layers) > _SHOWN else ""
    title = f"{asked}: layers by the share of the damage that goes when one runs in fp32{rest}"
    return Table(title, (_HEADER, *map(_row, shown)))


def repair_table(asked: str, repair: Repair) -> Table:
    """The attempts on the way to a repair, fewest layers first."""
    title = f"{asked}: layers kept in fp32, and what that gives"
    return Table(title, (_STEP_HEADER, *map(_step_row, repair.steps)))


def repair_lines(repair: Repair) -> Iterator[str]:
    """The effect of kept layers on the speed; nothing where none were enough."""
    if repair.configuration:
        speeds = f"{repair.speedup_before:.2f} to {repair.speedup_after:.2f} x reference"
        yield f"repair: {_count(repair.kept)} kept in fp32, {speeds} at batch 8"


def configuration_table(asked: str, repair: Repair) -> Table:
    """The lines to commit."""
    lines = tuple((line,) for line in repair.configuration.splitlines())
    return Table(f"{asked}: to keep these layers without a search, in pyproject.toml:", lines)


def _step_row(step: Step) -> tuple[str, ...]:
    return (
        str(len(step.kept)),
        f"{100 * step.recovered_share:.0f} %",
        f"{step.speedup:.2f}",
        "within" if step.enough else "beyond",
    )


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} layer{'' if len(names) == 1 else 's'}"


def _row(layer: Blamed) -> tuple[str, ...]:
    return (
        layer.layer,
        layer.kind,
        f"{layer.local_error:.1e}",
        f"{100 * layer.repaired_share:.0f} %",
    )
