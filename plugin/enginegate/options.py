"""Command line and `[tool.enginegate]`, read once into a frozen record."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from enginegate.errors import OptionError
from enginegate.models import ModelSpec, specs_from
from enginegate.variants import Precision, Variant, parse_precisions, plan

UNNAMED_MODEL = "model"  # the plan's name for a model that only a `model` fixture defines
Number = TypeVar("Number", int, float)

_DEFAULT_BATCHES = (1, 8, 16, 32)
_TABLE_KEYS = frozenset(
    [
        "backend",
        "baselines",
        "batches",
        "engine_cache",
        "max_slowdown",
        "measure_s",
        "min_rounds",
        "model",
        "models",
        "replicates",
        "threads",
        "warmup_rounds",
        "workload",
    ]
)


@dataclass(frozen=True)
class Options:
    """Everything a user can set; the command line wins over `[tool.enginegate]`.

    Attributes:
        precisions: what to judge; empty means that the plugin does nothing.
        backend: name of the backend, or `auto`.
        models: names of the models to judge.
        specs: every model definition by name.
        workload: file of texts, or None for the default corpus.
        threads: threads an engine may use.
        batches: batch sizes to time.
        replicates: freshly loaded pairs of engines to time.
        measure_s: seconds to spend on each batch size.
        min_rounds: timed rounds of each replicate at least.
        warmup_rounds: untimed rounds of each replicate.
        max_slowdown: largest change of time that passes, 0.05 for 5 %.
        strict: a flag fails its test.
        require_baseline: a missing or incomparable baseline fails its test.
        refresh_baselines: write what was measured instead of judging it.
        baselines: folder of the baselines.
        engine_cache: folder of exported models and built engines.
        report_text: file for the text report, or None.
        report_json: file for the JSON report, or None.
    """

    precisions: tuple[Precision, ...]
    backend: str
    models: tuple[str, ...]
    specs: Mapping[str, ModelSpec]
    workload: Path | None
    threads: int
    batches: tuple[int, ...]
    replicates: int
    measure_s: float
    min_rounds: int
    warmup_rounds: int
    max_slowdown: float
    strict: bool
    require_baseline: bool
    refresh_baselines: bool
    baselines: Path
    engine_cache: Path
    report_text: Path | None
    report_json: Path | None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every variant of this run, grouped by model."""
        return plan(self.models or (UNNAMED_MODEL,), self.backend, self.precisions)

    @classmethod
    def from_config(cls, config: pytest.Config) -> "Options":
        """Read pytest's configuration. Raises OptionError for whatever is wrong in it."""
        table = _read_table(config)
        get = _Settings(config, table)
        specs = specs_from(_mapping(table, "models"), config.rootpath)
        return cls(
            precisions=parse_precisions(config.getoption("--precision")),
            backend=get.text("backend", "auto"),
            models=_models(get.words("model"), specs, tuple(_mapping(table, "models"))),
            specs=specs,
            workload=get.path("workload"),
            threads=get.count("threads", 1),
            batches=get.counts("batches", _DEFAULT_BATCHES),
            replicates=get.count("replicates", 4),
            measure_s=get.seconds("measure_s", 4.0),
            min_rounds=get.count("min_rounds", 4),
            warmup_rounds=get.count("warmup_rounds", 2),
            max_slowdown=get.seconds("max_slowdown", 0.05),
            strict=bool(config.getini("strict")),
            require_baseline=config.getoption("--require-baseline"),
            refresh_baselines=config.getoption("--refresh-baselines"),
            baselines=get.path("baselines") or config.rootpath / "baselines",
            engine_cache=get.path("engine_cache") or _default_cache(),
            report_text=_given_path(config, "--report-text"),
            report_json=_given_path(config, "--report-json"),
        )


class _Settings:
    """One setting from the command line, else the table, else its default, checked for its type."""

    def __init__(self, config: pytest.Config, table: Mapping[str, Any]) -> None:
        self._config, self._table = config, table

    def raw(self, name: str) -> Any:
        given = self._config.getoption(name)
        return self._table.get(name) if given is None else given

    def text(self, name: str, default: str) -> str:
        return str(self.raw(name) or default)

    def words(self, name: str) -> tuple[str, ...]:
        value = self.raw(name) or ()
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(str(part).strip() for part in parts if str(part).strip())

    def counts(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(_number(name, w, int) for w in self.words(name))) or default

    def count(self, name: str, default: int) -> int:
        value = self.raw(name)
        return default if value is None else _number(name, value, int)

    def seconds(self, name: str, default: float) -> float:
        value = self.raw(name)
        return default if value is None else _number(name, value, float)

    def path(self, name: str) -> Path | None:
        if given := _given_path(self._config, name):
            return given
        stored = self._table.get(name)
        return self._config.rootpath / stored if stored else None


def _number(name: str, value: Any, kind: type[Number]) -> Number:
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = kind(0)
    if not 0 < number < float("inf"):
        flag = name.replace("_", "-")
        raise OptionError(f"--{flag} {value!r} is not a positive {kind.__name__}")
    return number


def _read_table(config: pytest.Config) -> Mapping[str, Any]:
    path = config.rootpath / "pyproject.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"cannot read {path}: {error}") from error
    table = _mapping(_mapping(content, "tool"), "enginegate")
    if unknown := sorted(set(table) - _TABLE_KEYS):
        raise OptionError(
            f"[tool.enginegate] has unknown keys {unknown}: use {sorted(_TABLE_KEYS)}"
        )
    return table


def _mapping(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise OptionError(f"{key} in pyproject.toml is not a table")
    return value


def _models(
    named: tuple[str, ...], specs: Mapping[str, ModelSpec], own: tuple[str, ...]
) -> tuple[str, ...]:
    if unknown := [name for name in named if name not in specs]:
        raise OptionError(f"unknown model {', '.join(unknown)}: defined are {', '.join(specs)}")
    return named or own


def _given_path(config: pytest.Config, option: str) -> Path | None:
    value: str | None = config.getoption(option)
    return config.invocation_params.dir / value if value else None


def _default_cache() -> Path:
    given = os.environ.get("ENGINEGATE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{base}/enginegate").expanduser()
