"""One report of a fleet, as much of it as a merge needs: a thousand of them fit into memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginegate.accuracy import Limits, Sample
from enginegate.errors import ReportError
from enginegate.files import sha256_of, sha256_of_json
from enginegate.report.compare import run_row
from enginegate.report.compose import figures_of, is_plain, matrix_of, members_of, said_of
from enginegate.report.page import Decided, Row
from enginegate.report.saved_run import SavedRun, decode_run, read_report
from enginegate.results import Result

_UNREAD: Mapping[str, Any] = {"costs": {}, "rooflines": {}}  # most of a report; not checked here
_TOGETHER = ("backend", "precision", "model", "output", "calibration", "runtime", "kept")


@dataclass(frozen=True)
class Sampled:
    """Embeddings of an engine that can be compared with those of the same engine elsewhere.

    Attributes:
        recipe: hash of all that decides what it is but the machine, and of its texts.
        sample: of its embeddings.
        limits: of its precision.
    """

    recipe: str
    sample: Sample
    limits: Limits


@dataclass(frozen=True)
class Engine:
    """A model and a precision in one report.

    Attributes:
        model, precision: what was asked for.
        decided: the decision.
        figures: its row among what changed; the first cell is its name.
        is_plain: it ships as before.
        rows: its engines side by side with others, without the source.
        samples: of its engines, in process and served.
    """

    model: str
    precision: str
    decided: Decided
    figures: Row
    is_plain: bool
    rows: tuple[Row, ...]
    samples: tuple[Sampled, ...]


@dataclass(frozen=True)
class Part:
    """One report.

    Attributes:
        file: its path.
        content: hash of the file.
        machine: that measured.
        kind: of machine: its name, the machine's id, or empty where the fleet is of one kind.
        alarm: chance of a false `regressed` in it.
        failures: reasons that the run failed for.
        interrupted: by what it was stopped; empty for one that came to its end.
        origin: when, and of which commit.
        allowed: largest slowdown that passes, by metric.
        shard: its part of a plan; empty for a whole run.
        engines: in it.
        said: of its models.
    """

    file: str
    content: str
    machine: str
    kind: str
    alarm: float
    failures: tuple[str, ...]
    interrupted: str
    origin: Mapping[str, Any]
    allowed: Mapping[str, float]
    shard: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[Engine, ...] = ()
    said: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`shard 2 of 6 on arm`, or the whole run of a kind."""
        where = f" on {self.kind}" if self.kind else ""
        number, count = (self.shard.get(key) for key in ("number", "count"))
        return f"shard {number} of {count}{where}" if self.shard else f"the run{where}"


def read_part(path: Path) -> Part:
    """The report in a file. Raises ReportError."""
    run = decode_run({**read_report(path), **_UNREAD}, path.stem, str(path))
    whole, shard = run.whole, run.whole.get("shard", {})
    if "failures" not in whole or "alarm" not in whole:
        raise ReportError(
            f"{path} does not say how its run ended, as it is of an older version: run pytest with "
            "--gate-report-json again"
        )
    alone = bool(shard) and shard["kinds"] == 1
    return Part(
        file=str(path),
        content=sha256_of(path),
        machine=run.machine.id,
        kind=whole.get("kind") or ("" if alone else run.machine.id),
        alarm=whole["alarm"],
        failures=tuple(whole["failures"]),
        interrupted=whole.get("interrupted", ""),
        origin=whole.get("origin", {}),
        allowed=whole["allowed"],
        shard=shard,
        engines=tuple(_engines(run)),
        said=tuple(said_of(run)),
    )


def _engines(run: SavedRun) -> Iterator[Engine]:
    for model, precision, decided in matrix_of(run).decisions:
        mine = members_of(run, model, precision)
        yield Engine(
            model,
            precision,
            decided,
            figures_of(run, model, precision, decided),
            is_plain(run, model, precision, decided),
            tuple(run_row("", result)[1:] for result in mine),
            tuple(sampled for result in mine for sampled in _sampled(result)),
        )


def _sampled(result: Result) -> Iterator[Sampled]:
    """The sample of an engine whose recipe is known; of a backend of one's own it is not."""
    made, accuracy = result.provenance, result.accuracy
    if made and made.recipe and accuracy and accuracy.sample:
        recipe = [made.recipe.get(key) for key in _TOGETHER]
        about = [recipe, result.context.workload_sha256, result.context.deployment]
        yield Sampled(sha256_of_json(about), accuracy.sample, accuracy.limits)
