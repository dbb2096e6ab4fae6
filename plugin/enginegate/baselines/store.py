"""Stored measurements: one readable file per machine and model, written whole or not at all."""

import contextlib
import datetime
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from enginegate.errors import BaselineError
from enginegate.files import (
    damage,
    locked,
    parse_json,
    read_text,
    readable_json,
    reading,
    write_atomic,
)
from enginegate.machine import Machine, library_versions
from enginegate.results import Context, Provenance, Result
from enginegate.serving import Capacity, Load, StoredLoad
from enginegate.speed import Speed
from enginegate.variants import checked_name, name_fault

CALIBRATION = "calibration.json"
SCHEMA = 2
_DIGITS = 5
_COMPARED = (
    "method",
    "workload_sha256",
    "seq_len",
    "threads",
    "reference",
    "deployment",
    "control",
    "power_limit",
)
_UNSAID = MappingProxyType({"control": "the reference", "power_limit": "not known"})
_KEPT_SESSIONS = 7  # the oldest, so that many small slips add up in sight, and the newest
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredSession:
    """What one run measured of one batch size.

    Attributes:
        date: day, ISO 8601.
        p50_s: median seconds of one call; explains, is not compared.
        log_ratios: log(candidate / yardstick) of each replicate, by metric.
    """

    date: str
    p50_s: float
    log_ratios: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Baseline:
    """What is stored of one variant.

    Attributes:
        file: where it was read from.
        context: what its figures go with.
        executed: matrix multiplications by the type they ran in.
        cells: sessions by batch size, of a served engine by concurrency; oldest first.
        load: what a served engine carried; None for others.
        provenance: where its engine comes from; None in files of older versions.
        deltas: how far its embeddings were off, by the names of `Deltas`; empty if not known.
        truth: the way the truth of its reference was computed; empty where none judged it, and in
            files of older versions.
    """

    file: Path
    context: Mapping[str, Any]
    executed: Mapping[str, int]
    cells: Mapping[int, tuple[StoredSession, ...]]
    load: StoredLoad | None = None
    provenance: Provenance | None = None
    deltas: Mapping[str, float] = field(default_factory=dict)
    truth: str = ""

    @property
    def machine(self) -> str:
        """The machine that it was measured on."""
        return self.file.parent.name

    @property
    def date(self) -> str:
        """Day of the newest session."""
        return max(session.date for sessions in self.cells.values() for session in sessions)

    def difference(self, context: Context) -> str:
        """The reason why it cannot be compared with a run of `context`; empty if it can."""
        now = asdict(context)
        then = {name: self.context.get(name, "") for name in _COMPARED}
        changed = [name for name in _COMPARED if then[name] != now[name]]
        said = {n: [value or _UNSAID.get(n, "") for value in (then[n], now[n])] for n in changed}
        return ", ".join(
            f"{name} was {before}, is {after}" for name, (before, after) in said.items()
        )

    def log_ratios(self, batch: int, metric: str) -> list[Sequence[float]]:
        """Of each session that has the metric at this batch size; empty if none has."""
        sessions = self.cells.get(batch, ())
        return [s.log_ratios[metric] for s in sessions if metric in s.log_ratios]


@dataclass(frozen=True)
class Update:
    """A variant to be written.

    Attributes:
        result: of the run.
        replace: instead of what is there; else its sessions are added.
        further: its speeds in further sessions, in the order that they were measured in.
    """

    result: Result
    replace: bool
    further: Sequence[Speed] = ()


@dataclass(frozen=True)
class Baselines:
    """The folder of all baselines as one machine sees it."""

    root: Path
    machine: Machine

    def path(self, model: str) -> Path:
        """File of a model on this machine."""
        return self.root / self.machine.id / f"{checked_name(model)}.json"

    def load(self, model: str) -> dict[str, Baseline]:
        """Baselines of a model on this machine by variant key; empty if there is no file.

        Raises BaselineError if the file cannot be read or is not valid.
        """
        return _read(self.path(model))

    def everywhere(self, model: str, key: str) -> list[Baseline]:
        """The baseline of a variant on each machine that has one, this machine first."""
        found = (_read(path).get(key) for path in self._paths(model))
        return [baseline for baseline in found if baseline is not None]

    def with_truth(self, model: str) -> Iterator[tuple[str, Baseline]]:
        """The variants of a model whose reference a truth judged; this machine's first."""
        found = (item for path in self._paths(model) for item in _read(path).items())
        return ((key, baseline) for key, baseline in found if baseline.truth)

    def _paths(self, model: str) -> list[Path]:
        """The file of a model on this machine, which may not be there, and on each other."""
        own = self.path(model)
        return [own, *(self.root / name / own.name for name in self.other_machines(model))]

    def all_here(self) -> Iterator[Baseline]:
        """Every baseline of this machine, but of files that cannot be read."""
        for model in self.models():
            with contextlib.suppress(BaselineError):  # whoever asks for that model is told
                yield from self.load(model).values()

    def models(self) -> list[str]:
        """Models that have a file on this machine."""
        files = (self.root / self.machine.id).glob("*.json")
        return sorted(file.stem for file in files if file.name != CALIBRATION)

    def other_machines(self, model: str) -> list[str]:
        """Other machines that have a baseline of the model."""
        files = sorted(self.root.glob(f"*/{checked_name(model)}.json"))
        return [file.parent.name for file in files if file.parent.name != self.machine.id]

    def save(self, model: str, updates: Sequence[Update], root: Path | None = None) -> Path:
        """Write the given variants and keep the others, below `root` or in place.

        Reading and writing happen under a lock, so two runs at once both end up in the file.
        Raises BaselineError if the present file is not valid or the folder cannot be written; the
        present file then stays as it is.
        """
        source = self.path(model)
        target = source if root is None else root / source.relative_to(self.root)
        try:
            with locked(source):
                write_content(target, self._content(model, updates))
        except TimeoutError as error:
            raise BaselineError(
                f"{error}; nothing was changed, run again when it is done"
            ) from error
        return target

    def _content(self, model: str, updates: Sequence[Update]) -> Any:
        content = read_content(self.path(model)) or {"variants": {}}
        content |= {"schema": SCHEMA, "model": model, "machine": self.machine.as_json()}
        for update in updates:
            key = update.result.variant.key
            content["variants"][key] = _merged(content["variants"].get(key), update)
        return content


def _read(path: Path) -> dict[str, Baseline]:
    content = read_content(path)
    variants = content["variants"] if content else {}
    with _reading(path):
        return {key: _baseline(path, value) for key, value in variants.items()}


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole. Raises BaselineError for what JSON cannot say, and FileError."""
    try:
        text = readable_json(content)
    except (ValueError, TypeError) as error:
        raise BaselineError(
            f"baseline {path} is not written ({damage(error)}): measure it again"
        ) from error
    write_atomic(path, text)


def read_content(path: Path) -> Any:
    """The validated content of a file, or None if there is none.

    Raises BaselineError.
    """
    if not path.exists():
        return None
    with _reading(path):
        return parse_content(path, read_text(path, _MOST_BYTES))


def parse_content(path: Path, text: str) -> Any:
    """The validated content of `text`, which was found at `path`. Raises BaselineError."""
    with _reading(path):
        _refuse_conflict(text)
        content = parse_json(text)
        _refuse_other_schema(content)
        _refuse_damage(content)
        _refuse_name(content["model"], path.stem)
    return content


def _refuse_damage(content: Any) -> None:
    """Raise ValueError for what the schema does not allow; the schema is this package's own."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(_schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(content))
    if error is not None:
        raise ValueError(f"{error.json_path}: {error.message[:200]}")


def _refuse_conflict(text: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(("<<<<<<<", ">>>>>>>")):
            raise ValueError(f"line {number} is a merge conflict marker: resolve it first")


def _refuse_other_schema(content: Any) -> None:
    version = content.get("schema") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version != SCHEMA:
        writer = "a newer" if version > SCHEMA else "an older"
        remedy = "upgrade pytest-enginegate" if version > SCHEMA else "it must be measured anew"
        raise ValueError(
            f"written by {writer} enginegate: schema {version}, this one reads {SCHEMA}; {remedy}"
        )


def _refuse_name(model: str, file: str) -> None:
    """Raise ValueError for no name, and where a disk takes two names for one file."""
    if fault := name_fault(model):
        raise ValueError(fault)
    if model != file and model.casefold() == file.casefold():
        raise ValueError(f"it is of {model}, not of {file}: this disk takes both for one name")


def _reading(path: Path) -> AbstractContextManager[None]:
    way_out = (
        f"restore it with `git checkout -- {path.name}` in its folder, or delete it and run with "
        "--gate-refresh-baselines"
    )
    return reading(path, "baseline", way_out, BaselineError)


@functools.cache
def _schema() -> Any:
    text = (
        resources.files("enginegate.baselines").joinpath("baseline.schema.json").read_text("utf-8")
    )
    return json.loads(text)


def _baseline(path: Path, stored: Mapping[str, Any]) -> Baseline:
    cells = {int(b): tuple(map(_session, found)) for b, found in stored["cells"].items()}
    load = _load(stored["load"]) if stored.get("load") else None
    made = stored.get("provenance")
    return Baseline(
        file=path,
        context=stored["context"],
        executed=stored["executed"],
        cells=cells,
        load=load,
        provenance=Provenance(**made) if made else None,
        deltas=stored.get("deltas") or {},
        truth=stored.get("truth", ""),
    )


def _load(stored: Mapping[str, Any]) -> StoredLoad:
    cliffs = tuple((cliff["first"], cliff["last"]) for cliff in stored["cliffs"])
    levels = tuple(sorted(map(int, stored["throughput_per_s"])))
    return StoredLoad(levels, cliffs, **(stored["capacity"] or {}))


def _session(stored: Mapping[str, Any]) -> StoredSession:
    ratios = {k: [math.log(r) for r in values] for k, values in stored["ratios"].items()}
    return StoredSession(stored["date"], stored["p50_s"], ratios)


def _merged(stored: Mapping[str, Any] | None, update: Update) -> dict[str, Any]:
    new = _as_json(update.result, update.further)
    if stored and new.get("load") and new["load"]["capacity"] is None:
        new["load"]["capacity"] = stored.get("load", {}).get("capacity")  # none was sought now
    if stored is None or update.replace:
        return new
    cells = {**stored["cells"]}
    for batch, sessions in new["cells"].items():
        together = [*cells.get(batch, []), *sessions]
        oldest, newest = together[:1], together[1:]
        cells[batch] = oldest + newest[-(_KEPT_SESSIONS - 1) :]
    return {**new, "cells": cells}


def _as_json(result: Result, further: Sequence[Speed]) -> dict[str, Any]:
    accuracy = result.accuracy
    return {
        "backend": result.backend,
        "chosen": result.chosen,
        "context": asdict(result.context),
        "deltas": asdict(accuracy.deltas) if accuracy and accuracy.deltas else None,
        "executed": dict(result.executed),
        "provenance": result.provenance and asdict(result.provenance),
        "truth": result.truth.by if result.truth else "",
        "versions": library_versions(),
        **({"load": _load_json(result.load)} if result.load else {}),
        "cells": {
            str(speed.batch): [
                _session_json(speed),
                *(_session_json(more) for more in further if more.batch == speed.batch),
            ]
            for speed in result.speeds
        },
    }


def _load_json(load: Load) -> dict[str, Any]:
    """The figures to compare, and those that a reviewer wants to see change."""
    found = load.analysis
    return {
        "cliffs": [
            {"first": c.first, "last": c.last, "cause": c.cause, "proven": c.proven}
            for c in found.cliffs
            if c.blames_server
        ],
        "saturated_from": found.saturated_from,
        "throughput_per_s": {str(x.concurrency): _rounded(x.throughput_per_s) for x in load.levels},
        "capacity": load.capacity and _capacity_json(load.capacity),
    }


def _capacity_json(capacity: Capacity) -> dict[str, Any]:
    return {
        "slo": str(capacity.slo),
        "low_per_s": _rounded(capacity.low_per_s),
        "high_per_s": capacity.high_per_s and _rounded(capacity.high_per_s),
    }


def _session_json(speed: Speed) -> dict[str, Any]:
    return {
        "calls": speed.calls,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "p50_s": _rounded(speed.p50_s),
        "yardstick_p50_s": _rounded(speed.yardstick_p50_s),
        "ratios": {
            metric: [_rounded(math.exp(value)) for value in values]
            for metric, values in speed.log_ratios.items()
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
