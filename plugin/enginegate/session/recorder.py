"""All that a run found and has to say. The only thing of a run that changes."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginegate.accuracy import AgainstTruth
from enginegate.diagnostics import Repair
from enginegate.engines import Built
from enginegate.errors import ModelError
from enginegate.models import ModelSpec
from enginegate.results import Result
from enginegate.session.again import Task
from enginegate.speed import Measured, OpenArms, Rig, Speed
from enginegate.variants import Variant
from enginegate.verdicts import Verdict, exit_status


@dataclass
class Recorder:
    """Written by the session alone; everybody else reads it.

    Attributes:
        results: the latest record of each variant, by its id.
        measured: samples and verdict of each batch size, by the variant's id.
        repairs: layers found to be kept, by the variant that was asked for.
        truths: of each model, whether its reference is the model.
        doubts: of each model, what is known against its reference.
        planned: batch sizes that tests will ask for, by variant.
        evidence: e-values by cell, carried from run to run.
        notices: verdict, text, and whether it failed, of each check.
        lines: what to tell the user at the end.
        problems: what could not be written.
        failures: tests with the reasons that the run fails for; no name where it was no test.
        interrupted: by what the run was stopped; empty for one that came to its end.
        measured_s: seconds spent measuring.
        rigs: how the arms of a variant are opened here, and how in another process, by its id.
        tasks: the latter for what was timed so.
        content: hash of the files of each engine, by its id.
        worth: why an engine may ship though fp32 is better, by its id.
        shard: which part of a fleet's plan this run is; None for a whole run.
    """

    results: dict[str, Result] = field(default_factory=dict)
    measured: dict[tuple[str, int], Measured] = field(default_factory=dict)
    repairs: dict[Variant, Repair] = field(default_factory=dict)
    truths: dict[str, AgainstTruth] = field(default_factory=dict)
    doubts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    planned: dict[Variant, tuple[int, ...]] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    notices: list[tuple[Verdict, str, bool]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    interrupted: str = ""
    measured_s: float = 0.0
    rigs: dict[str, tuple[OpenArms, Task]] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    worth: dict[str, str] = field(default_factory=dict)
    shard: Mapping[str, Any] | None = None
    _asked: dict[str, Variant] = field(default_factory=dict)
    _started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._started_s = time.monotonic()

    def judge_reference(
        self, model: str, truth: AgainstTruth | None, doubts: Sequence[str] = ()
    ) -> None:
        """Keep what is known of a model's reference; the run fails by one that is not the model."""
        self.doubts[model] = tuple(doubts)
        if truth is None or model in self.truths:
            return
        self.truths[model] = truth
        if truth.faults:
            self.fail(Verdict.FAIL)

    def open(self, asked: Variant, result: Result) -> Result:
        """Begin the record of a variant. Raises ModelError for a second one of the same id."""
        name = result.variant.id
        if self._asked.setdefault(name, asked) != asked:
            raise ModelError(
                f"two models of this run are both named {name}: a `model` fixture that is "
                "overridden serves one model, so name only one with --gate-model"
            )
        return self.keep(result)

    def keep(self, result: Result) -> Result:
        """Keep the latest of a variant."""
        self.results[result.variant.id] = result
        return result

    def update(self, result: Result, **parts: Any) -> Result:
        """Change parts of the latest record of a variant; `result` is it where there is none."""
        return self.keep(dataclasses.replace(self.latest(result), **parts))

    def note_engine(self, result: Result, built: Built, spec: ModelSpec) -> None:
        """Keep what a variant's engine is told by from others, and why it may ship all the same."""
        self.content[result.variant.id] = built.files_sha256
        accepted = spec.accept.get(result.variant.precision, {})
        self.worth[result.variant.id] = accepted.get("dominated", "")

    def note(self, result: Result, text: str) -> None:
        """Add to the notes of the latest record of a variant, once."""
        notes = self.latest(result).notes
        if text not in notes:
            self.update(result, notes=(*notes, text))

    def add_speeds(self, result: Result, speeds: Iterable[Speed]) -> Result:
        """Add batch sizes to the latest record of a variant."""
        return self.update(result, speeds=(*self.latest(result).speeds, *speeds))

    def latest(self, result: Result) -> Result:
        """The variant's record as it stands now."""
        return self.results.get(result.variant.id, result)

    def plan(self, parameters: Iterable[Mapping[str, Any]]) -> None:
        """Note the batch sizes that tests will ask for, by their parameters."""
        for found in parameters:
            variant, batch = found.get("enginegate_variant"), found.get("batch_size")
            if isinstance(variant, Variant) and isinstance(batch, int):
                known = self.planned.get(variant, ())
                self.planned[variant] = tuple(sorted({*known, batch}))

    def batches_with(self, result: Result, batch: int) -> Sequence[int]:
        """The planned batch sizes of a variant if `batch` is among them, else that one alone."""
        asked = self._asked.get(result.variant.id, result.variant)
        planned = self.planned.get(asked, ())
        return planned if batch in planned else (batch,)

    def note_timed(self, result: Result, rig: Rig, batches: Sequence[int]) -> None:
        """Note how to time a variant again, unless a rig of the project's own timed it."""
        opened, task = self.rigs.get(result.variant.id, (None, None))
        if task and opened is rig.open_arms:
            self.tasks[result.variant.id] = dataclasses.replace(task, batches=batches)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Count what happens inside as measurement."""
        start_s = time.monotonic()
        yield
        self.measured_s += time.monotonic() - start_s

    @property
    def other_s(self) -> float:
        """Seconds of the run so far outside measurement."""
        return time.monotonic() - self._started_s - self.measured_s

    def notice(self, verdict: Verdict, text: str, *, fails: bool) -> None:
        """Note the outcome of a check, once if its test is run again."""
        if (noted := (verdict, text, fails)) not in self.notices:
            self.notices.append(noted)

    def fail(self, reason: str, test: str = "") -> None:
        """Note why a test failed: a verdict, `error`, or nothing."""
        self.failures.append((test, reason))

    def begin(self, test: str) -> None:
        """Forget why a test failed that is run again: what was judged is not judged again."""
        self.failures = [failure for failure in self.failures if failure[0] != test]

    def exit_status(self) -> int:
        """0, 1, or one of `Exit`."""
        problems = ("error" for _ in self.problems)
        return exit_status([*(why for _, why in self.failures), *problems])
