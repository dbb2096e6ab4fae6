"""Numbers of the page in words. All that the other modules of this package print is made here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "-"
_UNITS = ("B", "KiB", "MiB", "GiB")
_KIBI = 1024
_LEAST_SHARE = 0.005


def percent(share: float | None) -> str:
    """`12.3 %` of 0.123; a dash where nothing is known."""
    return NOTHING if _unknown(share) else f"{100 * float(share or 0.0):.1f} %"


def times(ratio: float | None) -> str:
    """`1.23 x`."""
    return NOTHING if _unknown(ratio) else f"{float(ratio or 0.0):.2f} x"


def whole(number: float | None) -> str:
    """A count or a throughput with separators of thousands."""
    return NOTHING if _unknown(number) else f"{float(number or 0.0):,.0f}"


def loss(cosine: float | None) -> str:
    """1 - cosine in two digits: `3.1e-05`."""
    return NOTHING if cosine is None or math.isnan(cosine) else f"{max(0.0, 1 - cosine):.1e}"


def short(number: float | None) -> str:
    """Three significant digits."""
    return NOTHING if _unknown(number) else f"{float(number or 0.0):.3g}"


def milliseconds(seconds: float | None) -> str:
    """Three significant digits of a time in milliseconds; a dash where it is not known."""
    if seconds is None or math.isnan(seconds):
        return NOTHING
    return f"{1000 * seconds:#.3g}".rstrip(".")


def span(low: float | None, high: float | None) -> str:
    """`1.02 to 1.09`."""
    return f"{short(low)} to {short(high)}"


def interval(value: float, low: float, high: float) -> str:
    """`0.984 (0.971 to 0.993)`."""
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def size(count: int) -> str:
    """`21.3 MiB`."""
    power = min(int(math.log(count, _KIBI)), len(_UNITS) - 1) if count else 0
    return f"{count / _KIBI**power:.{1 if power else 0}f} {_UNITS[power]}"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 engine`, `2 engines`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def shares(found: Mapping[str, Any]) -> str:
    """`bf16 91.0 %, f32 9.0 %`, the largest first; what is under half a per cent left out."""
    ordered = sorted(found.items(), key=lambda item: -item[1])
    ordered = [(name, share) for name, share in ordered if share >= _LEAST_SHARE]
    return ", ".join(f"{name} {percent(share)}" for name, share in ordered)


def _unknown(number: float | None) -> bool:
    return number is None or not math.isfinite(number)
