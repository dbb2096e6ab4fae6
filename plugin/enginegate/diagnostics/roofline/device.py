"""What a device can do at most: measured here, or read from a profile."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from enginegate.errors import OptionError
from enginegate.files import parse_json, read_text, reading

ELEMENT_BYTES: Mapping[str, int] = MappingProxyType({"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1})


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
    """A device from a JSON or TOML file, as `profile.schema.json` describes it.

    Raises OptionError for whatever is wrong in it.
    """
    content = _content(path)
    levels = tuple(
        Memory(m["name"], float(m.get("capacity_bytes") or math.inf), float(m["bytes_per_s"]))
        for m in content["memory"]
    )
    sizes = [level.capacity_bytes for level in levels]
    if sizes != sorted(set(sizes)) or math.isfinite(sizes[-1]):
        raise OptionError(
            f"{path}: levels of memory go from small to large, and the last has no capacity_bytes"
        )
    peaks = {name: float(peak) for name, peak in content["peaks_per_s"].items()}
    return Device(content["name"], content["source"], peaks, levels)


def _content(path: Path) -> Mapping[str, Any]:
    import jsonschema

    toml = partial(tomllib.loads, parse_float=_finite_float)
    read = toml if path.suffix == ".toml" else parse_json
    schema = resources.files("enginegate.diagnostics.roofline").joinpath("profile.schema.json")
    with reading(path, "the device profile", "docs/cost.md says what it holds", OptionError):
        content: Mapping[str, Any] = read(read_text(path))
    try:
        jsonschema.validate(content, parse_json(schema.read_text("utf-8")))
    except jsonschema.ValidationError as error:
        raise OptionError(f"{path}: {error.json_path}: {error.message[:200]}") from error
    return content


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
