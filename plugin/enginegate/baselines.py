"""Stored measurements: one readable file per machine and model, written whole or not at all."""

import datetime
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from enginegate.errors import BaselineError
from enginegate.files import parse_json, readable_json, write_atomic
from enginegate.machine import Machine, library_versions
from enginegate.results import Context, Result, Speed
from enginegate.stats import Replicate

SCHEMA = 1
_KEPT_ROUNDS = 24  # of each replicate, evenly spaced: enough for its median, small enough to diff
_DIGITS = 4
_COMPARED = ("workload_sha256", "seq_len", "threads", "reference")


@dataclass(frozen=True)
class Baseline:
    """What is stored of one variant.

    Attributes:
        file: where it was read from.
        context: what its figures go with.
        date: day of the measurement, ISO 8601.
        cells: replicates by batch size.
    """

    file: Path
    context: Mapping[str, Any]
    date: str
    cells: Mapping[int, tuple[Replicate, ...]]

    def difference(self, context: Context) -> str:
        """Why it cannot be compared with a run of `context`; empty if it can."""
        now = asdict(context)
        changed = [name for name in _COMPARED if self.context[name] != now[name]]
        return ", ".join(f"{n} was {self.context[n]}, is {now[n]}" for n in changed)


@dataclass(frozen=True)
class Baselines:
    """The folder of all baselines as one machine sees it."""

    root: Path
    machine: Machine

    def path(self, model: str) -> Path:
        """File of a model on this machine."""
        return self.root / self.machine.id / f"{model}.json"

    def load(self, model: str) -> dict[str, Baseline]:
        """Baselines of a model on this machine by variant key; empty if there is no file.

        Raises BaselineError if the file cannot be read or is not valid.
        """
        path = self.path(model)
        content = _read(path)
        variants = content["variants"] if content else {}
        return {key: _baseline(path, value) for key, value in variants.items()}

    def other_machines(self, model: str) -> list[str]:
        """Other machines that have a baseline of the model."""
        files = sorted(self.root.glob(f"*/{model}.json"))
        return [file.parent.name for file in files if file.parent.name != self.machine.id]

    def save(self, model: str, results: Iterable[Result]) -> Path:
        """Write the given variants and keep the others. Returns the file.

        Raises BaselineError if the present file is not valid or the folder cannot be written; the
        present file then stays as it is.
        """
        path = self.path(model)
        content = _read(path) or {"variants": {}}
        content |= {"schema": SCHEMA, "model": model, "machine": self.machine.as_json()}
        content["variants"] |= {result.variant.key: _as_json(result) for result in results}
        try:
            write_atomic(path, readable_json(content))
        except OSError as error:
            raise BaselineError(
                f"cannot write baseline {path}: {error.strerror or error}; nothing was changed, "
                "free the folder or name another with --baselines"
            ) from error
        return path


def _read(path: Path) -> Any:
    """The validated content of a file, or None if there is none."""
    import jsonschema

    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        jsonschema.validate(content, _schema())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _invalid(path, str(error)) from error
    except jsonschema.ValidationError as error:
        raise _invalid(path, f"{error.json_path}: {error.message[:200]}") from error
    return content


def _invalid(path: Path, reason: str) -> BaselineError:
    return BaselineError(
        f"baseline {path} is not valid ({reason}); restore it with `git checkout -- {path.name}` "
        "in its folder, or delete it and run with --refresh-baselines"
    )


@functools.cache
def _schema() -> Any:
    text = resources.files("enginegate").joinpath("baseline.schema.json").read_text("utf-8")
    return json.loads(text)


def _baseline(path: Path, stored: Mapping[str, Any]) -> Baseline:
    cells = {
        int(batch): tuple(_replicate(path, r) for r in replicates)
        for batch, replicates in stored["cells"].items()
    }
    return Baseline(path, stored["context"], stored["date"], cells)


def _replicate(path: Path, stored: Mapping[str, Any]) -> Replicate:
    candidate, reference = stored["candidate_s"], stored["reference_s"]
    if len(candidate) != len(reference):
        raise _invalid(path, f"{len(candidate)} candidate and {len(reference)} reference times")
    return candidate, reference


def _as_json(result: Result) -> dict[str, Any]:
    accuracy = result.accuracy
    return {
        "backend": result.backend,
        "chosen": result.chosen,
        "context": asdict(result.context),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "deltas": asdict(accuracy.deltas) if accuracy and accuracy.deltas else None,
        "executed": dict(result.executed),
        "versions": library_versions(),
        "cells": {str(speed.batch): _cell(speed) for speed in result.speeds},
    }


def _cell(speed: Speed) -> list[dict[str, list[float]]]:
    return [
        {"candidate_s": _thin(candidate), "reference_s": _thin(reference)}
        for candidate, reference in speed.replicates
    ]


def _thin(samples: Iterable[float]) -> list[float]:
    values = list(samples)
    step = max(1, -(-len(values) // _KEPT_ROUNDS))
    return [float(f"{value:.{_DIGITS}g}") for value in values[::step]]
