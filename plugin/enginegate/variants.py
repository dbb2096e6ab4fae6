"""What to build: precisions, variants and their stable ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from enginegate.errors import OptionError

SERVED = "-served"  # at the end of a key
_LONGEST_NAME = 100
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{_LONGEST_NAME - 1}}}")
_RESERVED = ("calibration",)  # calibration.json lies beside the baselines


class Precision(StrEnum):
    """A precision a user may ask for; `best` is the fastest one within bf16's limits."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    BEST = "best"


@dataclass(frozen=True)
class Variant:
    """One engine to judge: a model, a backend and a precision, as asked for.

    `served` is the same engine behind a server, which has figures of its own.
    """

    model: str
    backend: str
    precision: Precision
    served: bool = False

    @property
    def id(self) -> str:
        """Stable name in test ids and reports: `minilm-openvino-fp16`."""
        return f"{self.model}-{self.key}"

    @property
    def key(self) -> str:
        """Name inside the model's own baseline file: `openvino-fp16`, `openvino-fp16-served`."""
        return f"{self.backend}-{self.precision}{SERVED if self.served else ''}"


def precision_of(key: str) -> str:
    """The precision in a variant's key."""
    return key.removesuffix(SERVED).rpartition("-")[2]


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


def name_fault(name: object) -> str:
    """The reason why this cannot be a model's name; empty for one that can.

    A name is part of file names, of test ids and of lines of logs.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return (
            f"{ascii(name)[:120]} is no name of a model: use up to {_LONGEST_NAME} letters "
            "(a to z), digits, `.`, `_` and `-`, the first of them a letter, a digit or `_`"
        )
    if name.casefold() in _RESERVED:
        return (
            f"a model cannot be named {name}: what --gate-calibrate finds is stored under that name"
        )
    return ""


def checked_name(name: str) -> str:
    """The name of a model, to be part of a path. Raises OptionError."""
    if fault := name_fault(name):
        raise OptionError(fault)
    return name
