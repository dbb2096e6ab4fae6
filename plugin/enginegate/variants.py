"""What to build: precisions, variants and their stable ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from enginegate.errors import OptionError


class Precision(StrEnum):
    """A precision a user may ask for; `best` is the fastest one within the fp16 limits."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    BEST = "best"


@dataclass(frozen=True)
class Variant:
    """One engine to judge: a model, a backend and a precision, as asked for."""

    model: str
    backend: str
    precision: Precision

    @property
    def id(self) -> str:
        """Stable name in test ids and reports: `minilm-openvino-fp16`."""
        return f"{self.model}-{self.key}"

    @property
    def key(self) -> str:
        """Name inside the model's own baseline file: `openvino-fp16`."""
        return f"{self.backend}-{self.precision}"


def parse_precisions(words: Sequence[str]) -> tuple[Precision, ...]:
    """Read `fp16`, `fp16,int8` or `all`; OptionError for anything else. Order is kept."""
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if words and not names:
        raise OptionError(f"no precision named: use {', '.join(Precision)}, or all")
    if "all" in names:
        return tuple(Precision)
    return tuple(dict.fromkeys(_precision(name) for name in names))


def _precision(name: str) -> Precision:
    try:
        return Precision(name.lower())
    except ValueError:
        offered = ", ".join(Precision)
        raise OptionError(f"unknown precision {name!r}: use {offered}, or all") from None


def plan(
    models: Sequence[str], backend: str, precisions: Sequence[Precision]
) -> tuple[Variant, ...]:
    """Every variant of this run, grouped by model."""
    return tuple(Variant(m, backend, p) for m in models for p in precisions)
