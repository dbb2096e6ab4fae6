"""What is said of blamed layers. Their numbers are formatted here."""

from collections.abc import Sequence
from dataclasses import dataclass

from enginegate.blame.search import Blamed

_HEADER = ("layer", "kind", "alone", "repairs")
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


def _row(layer: Blamed) -> tuple[str, ...]:
    return (
        layer.layer,
        layer.kind,
        f"{layer.local_error:.1e}",
        f"{100 * layer.repaired_share:.0f} %",
    )
