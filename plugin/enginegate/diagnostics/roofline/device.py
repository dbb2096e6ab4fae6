"""What a device can do at most: measured here, or read from a profile."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from enginegate.errors import OptionError
from enginegate.files import parse_json, read_text, reading

ELEMENT_BYTES: Mapping[str, int] = MappingProxyType({"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1})
_KEYS = frozenset({"name", "source", "peaks_per_s", "memory"})
_MEMORY_KEYS = frozenset({"name", "capacity_bytes", "bytes_per_s"})


@dataclass(frozen=True)
class Memory:
    """One level of memory.

    Attributes:
        name: such as `L3` or `DRAM`.
        capacity_bytes: what it holds; infinite for the last level.
        bytes_per_s: largest rate of reading from it.
    """

    name: str
    capacity_bytes: float
    bytes_per_s: float


@dataclass(frozen=True)
class Device:
    """Ceilings of a device.

    Attributes:
        name: of the device, and with how many threads where that matters.
        source: where the figures come from.
        peaks_per_s: FLOP/s of matrix products by precision.
        memory: from the smallest level to the largest.
    """

    name: str
    source: str
    peaks_per_s: Mapping[str, float]
    memory: tuple[Memory, ...]

    def holding(self, size_bytes: float) -> Memory:
        """The smallest level that holds so much."""
        fitting = (level for level in self.memory if level.capacity_bytes >= size_bytes)
        return next(fitting, self.memory[-1])

    def peak_per_s(self, precision: str) -> float:
        """FLOP/s of a precision. Raises OptionError if the device has none."""
        if precision not in self.peaks_per_s:
            known = ", ".join(self.peaks_per_s)
            raise OptionError(
                f"device {self.name} has no peak for {precision}, only for {known}: add it to "
                "peaks_per_s of its profile"
            )
        return self.peaks_per_s[precision]

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; null for a level that holds everything."""
        record = {**asdict(self), "peaks_per_s": dict(self.peaks_per_s)}
        record["memory"] = [
            {**asdict(m), "capacity_bytes": _finite(m.capacity_bytes)} for m in self.memory
        ]
        return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_profile(path: Path) -> Device:
    """A device from a JSON or TOML file: `name`, `source`, `peaks_per_s`, `memory`.

    Raises OptionError for whatever is wrong in it.
    """
    content = _content(path)
    _refuse_keys(content, _KEYS, path, "the profile")
    peaks = content["peaks_per_s"]
    if not isinstance(peaks, Mapping) or not peaks or set(peaks) - set(ELEMENT_BYTES):
        raise OptionError(f"{path}: peaks_per_s needs FLOP/s of {', '.join(ELEMENT_BYTES)}")
    levels = content["memory"]
    if not isinstance(levels, list) or not levels:
        raise OptionError(f"{path}: memory needs a list of levels, the smallest first")
    return Device(
        name=str(content["name"]),
        source=str(content["source"]),
        peaks_per_s={name: _rate(path, name, value) for name, value in peaks.items()},
        memory=_levels(path, levels),
    )


def _content(path: Path) -> Mapping[str, Any]:
    parse = tomllib.loads if path.suffix == ".toml" else parse_json
    with reading(path, "the device profile", "docs/cost.md says what it holds", OptionError):
        content = parse(read_text(path))
    if not isinstance(content, Mapping):
        raise OptionError(f"{path} is not a table of {', '.join(sorted(_KEYS))}")
    return content


def _levels(path: Path, levels: list[Any]) -> tuple[Memory, ...]:
    for level in levels:
        if not isinstance(level, Mapping):
            raise OptionError(f"{path}: a level of memory is a table, not {level!r}")
        _refuse_keys({"capacity_bytes": None, **level}, _MEMORY_KEYS, path, "a level of memory")
    found = tuple(_level(path, level) for level in levels)
    sizes = [level.capacity_bytes for level in found]
    if sizes != sorted(sizes) or len(set(sizes)) < len(sizes) or math.isfinite(sizes[-1]):
        raise OptionError(
            f"{path}: levels of memory go from small to large, and the last has no capacity_bytes"
        )
    return found


def _level(path: Path, level: Mapping[str, Any]) -> Memory:
    name = str(level["name"])
    held = level.get("capacity_bytes")
    capacity = math.inf if held is None else _rate(path, f"capacity_bytes of {name}", held)
    return Memory(name, capacity, _rate(path, f"bytes_per_s of {name}", level["bytes_per_s"]))


def _refuse_keys(table: Mapping[str, Any], wanted: frozenset[str], path: Path, what: str) -> None:
    if set(table) != wanted:
        raise OptionError(f"{path}: {what} has the keys {sorted(table)}: it needs {sorted(wanted)}")


def _rate(path: Path, name: str, value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:  # type: ignore[operator]
        raise OptionError(f"{path}: {name} = {value!r} is not a positive number")
    return float(value)  # type: ignore[arg-type]
