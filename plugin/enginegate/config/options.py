"""Command line and `[tool.enginegate]`, read once into a frozen record."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enginegate.config.arguments import GATE, SERVING
from enginegate.config.fleet import FleetOptions, fleet_options
from enginegate.config.serving import ServeOptions
from enginegate.config.settings import (
    Settings,
    flag_of,
    given,
    mapping,
    raw,
    read_table,
    refuse_unknown,
)
from enginegate.config.shard import Shard
from enginegate.errors import OptionError
from enginegate.files import default_cache, sha256_of_json
from enginegate.variants import Precision, Variant, parse_precisions, plan
from enginegate.verdicts import GateLevel, Refresh, Verdict

if TYPE_CHECKING:
    import pytest

    from enginegate.models import ModelSpec

_TIME = ("replicates", "measure_s", "max_time_per_variant")
UNNAMED_MODEL = "model"  # the plan's name for a model that only a `model` fixture defines


@dataclass(frozen=True)
class Options:
    """Everything a user can set; the command line wins over `[tool.enginegate]`.

    Each attribute is the value of an option, as the option's help in `arguments` says, but for:

    Attributes:
        models_narrowed: whether --gate-model named the models.
        specs: every model definition by name.
        own_time: whether an option of time was given: it holds also where nothing is compared.
        strict: pytest's own; a flag fails its test.
        rootpath: pytest's root folder.
        selection: arguments that name the tests of this run, paths absolute.
        demanding: arguments of this run's command line that decide how its engines are built.
        serve: how to serve and load the engines; None for not at all.
        fleet: machines that run the parts of this run; None to run it here.
        definitions: hash of the models' tables.
        elsewhere: model and precision of what other shards run.
    """

    precisions: tuple[Precision, ...]
    backend: str
    models: tuple[str, ...]
    models_narrowed: bool
    specs: "Mapping[str, ModelSpec]"
    workload: Path | None
    sts: Path | None
    rebuilds: int
    threads: int
    tf32: bool
    batches: tuple[int, ...]
    replicates: int
    measure_s: float
    max_time_s: float
    own_time: bool
    max_slowdown: float
    max_slowdown_p99: float
    gate: GateLevel
    strict: bool
    require_baseline: bool
    refresh: Refresh
    sessions: int
    dry_run: bool
    accept_regressions: bool
    against: str
    against_python: str
    measure_identical: bool
    save_engines: Path | None
    calibrate: bool
    seed: int | None
    history: bool
    blame: bool
    repair: bool
    rootpath: Path
    selection: tuple[str, ...]
    baselines: Path
    engine_cache: Path
    report_text: Path | None
    report_json: Path | None
    report_html: Path | None
    report_markdown: Path | None
    serve: ServeOptions | None = None
    roofline: bool = False
    demanding: tuple[str, ...] = ()
    shard: Shard | None = None
    kind: str = ""
    fleet: FleetOptions | None = None
    definitions: str = ""
    elsewhere: frozenset[tuple[str, str]] = frozenset()

    @property
    def reports(self) -> list[Path]:
        """Files of all reports that were asked for."""
        found = (self.report_text, self.report_json, self.report_html, self.report_markdown)
        return [path for path in found if path]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every variant of this run, grouped by model."""
        whole = plan(self.models or (UNNAMED_MODEL,), self.backend, self.precisions)
        return tuple(v for v in whole if (v.model, v.precision) not in self.elsewhere)

    @property
    def allowed(self) -> dict[str, float]:
        """The largest slowdown that passes, by metric."""
        return {"p50": self.max_slowdown, "p99": self.max_slowdown_p99}

    @property
    def beside(self) -> str:
        """The other side of the measurement, in words; empty for the reference."""
        python = f"libraries of {self.against_python}" if self.against_python else ""
        return " with the ".join(part for part in (self.against, python) if part)

    @property
    def building(self) -> list[str]:
        """Arguments of pytest for building the same variants elsewhere.

        What only a table says is left to the table there.
        """
        given = {
            "precision": ",".join(dict.fromkeys(v.precision for v in self.variants)),
            "backend": self.backend,
            "model": ",".join(self.models) if self.models_narrowed else "",
            "engine-cache": str(self.engine_cache),
        }
        named = [f"--gate-{name}={value}" for name, value in given.items() if value]
        own = dict.fromkeys(f"{variant.model}-" for variant in self.variants)
        part = ["-k", " or ".join(own)] if self.elsewhere else []
        return [*self.selection, *named, *self.demanding, *part, "-p", "no:cacheprovider", "-q"]

    def fails(self, verdict: Verdict) -> bool:
        """Tell if a test with this verdict on its speed fails."""
        if self.gate in (GateLevel.WARN, GateLevel.OFF):
            return False
        if verdict is Verdict.REGRESSED:
            return not (self.refresh is not Refresh.NONE and self.accept_regressions)
        missing = verdict in (Verdict.NO_BASELINE, Verdict.INCOMPARABLE)
        if missing and self.require_baseline:
            return self.refresh is Refresh.NONE
        strictly = verdict is Verdict.UNDECIDED and self.gate is GateLevel.STRICT
        return strictly or verdict is Verdict.INVALID

    @classmethod
    def from_config(cls, config: "pytest.Config") -> "Options":
        """Read pytest's configuration. Raises OptionError for whatever is wrong in it."""
        from enginegate.models import specs_from

        table = read_table(config)
        get = Settings(config, GATE, table)
        refuse_unknown(get, "tool.enginegate", "models", "serve", "fleet")
        own = mapping(table, "models")
        specs = specs_from(own, config.rootpath)
        values = get.values()
        beside = values["against"] or values["against_python"]
        if beside and given(config, "refresh_baselines"):
            raise OptionError(
                "--gate-refresh-baselines measures beside the reference: run it without "
                "--gate-against"
            )
        values["precisions"] = parse_precisions(values["precisions"] or ())
        values["models"] = _models(values["models"], specs, tuple(own))
        values["engine_cache"] = values["engine_cache"] or default_cache()
        values["fleet"] = fleet_options(config, values["fleet"], mapping(table, "fleet"))
        serving = Settings(config, SERVING, mapping(table, "serve"))
        return cls(
            **values,
            own_time=any(raw(get, row) is not None for row in GATE if row.name in _TIME),
            models_narrowed=bool(given(config, "model")),
            specs=specs,
            strict=_strict(config),
            definitions=sha256_of_json(repr(own)),
            rootpath=config.rootpath,
            selection=tuple(_selection(config)),
            demanding=tuple(_demanding(config)),
            serve=ServeOptions.from_settings(serving, values["threads"]),
        )


def _models(
    named: tuple[str, ...], specs: "Mapping[str, ModelSpec]", own: tuple[str, ...]
) -> tuple[str, ...]:
    if unknown := [name for name in named if name not in specs]:
        raise OptionError(
            f"unknown model {', '.join(unknown)}: defined are {', '.join(specs)}; name one of "
            f"these, or define it in [tool.enginegate.models.{unknown[0]}] of pyproject.toml"
        )
    models = named or own
    if alike := [name for name in models if _folded(models).count(name.casefold()) > 1]:
        raise OptionError(
            f"models {', '.join(alike)} differ only in capitals: some disks take them for one file"
        )
    return models


def _selection(config: "pytest.Config") -> Iterator[str]:
    """Files, folders and packages of tests, whole: a test's id may be another elsewhere."""
    yield from ["--pyargs"] if config.option.pyargs else []
    yield from (f"-p{name}" for name in config.option.plugins)
    for word in config.option.file_or_dir:
        name = word.partition("::")[0]
        path = config.invocation_params.dir / name
        yield str(path.resolve()) if path.exists() else name


def _demanding(config: "pytest.Config") -> Iterator[str]:
    """The options given that decide how engines are built: for which batches, by which texts."""
    yield from ["--gate-tf32"] if given(config, "tf32") else []
    named = {name: given(config, name) for name in ("batches", "serve", "max_batch_size")}
    if workload := given(config, "workload"):
        named["workload"] = config.invocation_params.dir / workload
    yield from (f"{flag_of(name)}={value}" for name, value in named.items() if value)


def _folded(names: tuple[str, ...]) -> list[str]:
    return [name.casefold() for name in dict.fromkeys(names)]


def _strict(config: "pytest.Config") -> bool:
    """Pytest's own `strict`: a setting from version 9 on, before that an option only."""
    try:
        return bool(config.getini("strict"))
    except ValueError:
        return bool(config.getoption("strict"))
