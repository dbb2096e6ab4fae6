"""What a run leaves behind: lost checks reported, baselines, calibration, history, reports."""

import dataclasses
import functools
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginegate.baselines import (
    Baselines,
    append_history,
    calibrate_results,
    calibration_lines,
    offer,
    refresh_baselines,
    save_calibration,
    unjudged,
)
from enginegate.config import Options
from enginegate.errors import EngineGateError
from enginegate.files import damage, write_atomic
from enginegate.machine import state_as_json, this_machine
from enginegate.report import (
    append_summary,
    interrupted_line,
    render_json,
    render_text,
    run_html,
    run_markdown,
    spent_line,
)
from enginegate.results import Result
from enginegate.session.costs import ModelCosts
from enginegate.session.recorder import Recorder
from enginegate.speed import Rules
from enginegate.verdicts import GateLevel, Refresh, Verdict

if TYPE_CHECKING:
    from enginegate.session import Session


def finish_run(session: "Session", *, interrupted: str, narrowed: str) -> None:
    """Write baselines and reports; what cannot be written is one of the recorder's problems.

    `interrupted` says by what the run was stopped; empty for one that came to its end.
    """
    recorder, costs = session.recorder, session.costs
    recorder.interrupted = interrupted
    recorder.lines += [interrupted_line(interrupted)] if interrupted else []
    results = list(recorder.results.values())
    output = RunOutput(session.options, session.comparisons.baselines, recorder)
    if results:
        recorder.lines.append(spent_line(recorder.measured_s, recorder.other_s))
    output.look_for_missing(results, narrowed)
    output.settle_baselines(results, interrupted=bool(interrupted))
    if not interrupted:  # what is still to be measured is measured by the next run
        output.calibrate(results, session.rules, session.seed)
        output.compare_with_ceilings(results, costs)
    condition = {**session.condition, "gpu_after": state_as_json()}
    output.write_reports(results, condition, session.seed, costs)
    session.prepare.close()


@dataclass(frozen=True)
class RunOutput:
    """Writes what is to be written; one thing that fails does not keep the others from it.

    Attributes:
        options: of the run.
        baselines: of this machine.
        recorder: is told what to say, what could not be written, and why the run fails.
    """

    options: Options
    baselines: Baselines
    recorder: Recorder

    def look_for_missing(self, results: Sequence[Result], narrowed: str) -> None:
        """Report what had a baseline and was not judged, unless the run was narrowed."""
        if self.options.gate is not GateLevel.OFF and not self.options.save_engines:
            self._attempt(lambda: self._look_for_missing(results, narrowed))

    def _look_for_missing(self, results: Sequence[Result], narrowed: str) -> None:
        if narrowed and self.baselines.models():
            self.recorder.lines.append(
                f"not looked for lost checks: the run was narrowed by {narrowed}"
            )
        if narrowed:
            return
        found = list(unjudged(self.baselines, results, self.options))
        self.recorder.lines += [f"not judged: {line}" for line in found]
        if found and self.options.fails(Verdict.NO_BASELINE):
            self.recorder.fail(Verdict.NO_BASELINE)

    def settle_baselines(self, results: Sequence[Result], *, interrupted: bool) -> None:
        """Refresh them, or offer what would accept a regression; append the history."""
        if not self.options.save_engines and not self.options.calibrate:
            self._attempt(lambda: self._settle(results, interrupted=interrupted))

    def _settle(self, results: Sequence[Result], *, interrupted: bool) -> None:
        if self.options.history and not self.options.beside:
            machine = self.baselines.machine.id
            append_history(results, self.baselines.root, machine, self.options.rootpath)
        settle = refresh_baselines if self.options.refresh is not Refresh.NONE else offer
        self.recorder.lines += settle(
            self.baselines, results, self.options, interrupted=interrupted
        )

    def calibrate(self, results: Sequence[Result], rules: Rules, seed: int) -> None:
        """With --calibrate, say and store what the gate is worth here."""
        if self.options.calibrate:
            self._attempt(lambda: self._calibrate(results, rules, seed))

    def _calibrate(self, results: Sequence[Result], rules: Rules, seed: int) -> None:
        spent_s = self.recorder.measured_s
        found = calibrate_results(results, self.options.max_slowdown, rules, spent_s, seed)
        self.recorder.lines += calibration_lines(found)
        if found:
            folder = self.baselines.root / self.baselines.machine.id
            path = save_calibration(folder, found, dataclasses.asdict(rules))
            self.recorder.lines.append(f"calibration: wrote {os.path.relpath(path)}")

    def compare_with_ceilings(self, results: Sequence[Result], costs: ModelCosts) -> None:
        """With --roofline, say what the machine allows and how much of it was reached."""
        self._attempt(lambda: self.recorder.lines.extend(costs.roofline_lines(results)))

    def write_reports(
        self, results: Sequence[Result], condition: Mapping[str, Any], seed: int, costs: ModelCosts
    ) -> None:
        """The reports that were asked for."""
        machine, allowed = this_machine(), self.options.allowed
        stopped = self.recorder.interrupted
        counted = costs.costs
        rooflines = functools.partial(costs.rooflines, () if stopped else results)
        report = functools.cache(
            lambda: render_json(
                results, machine, condition, seed, allowed, counted(), rooflines(), stopped
            )
        )
        makers: dict[Path | None, Callable[[], str]] = {
            self.options.report_text: lambda: (
                render_text(results, [*costs.lines(), *self._stopped_lines()]) + "\n"
            ),
            self.options.report_json: report,
            self.options.report_html: lambda: run_html(report(), self.options.baselines),
            self.options.report_markdown: lambda: run_markdown(report()),
        }
        for path, make in makers.items():
            if path:
                self._attempt(functools.partial(_write, path, make), str(path))
        if results:
            self._attempt(lambda: append_summary(lambda: run_markdown(report())))

    def _stopped_lines(self) -> list[str]:
        stopped = self.recorder.interrupted
        return [interrupted_line(stopped)] if stopped else []

    def _attempt(self, action: Callable[[], None], what: str = "the ending of the run") -> None:
        """Do it; what goes wrong, of any kind, is a problem and keeps nothing else back."""
        try:
            action()
        except EngineGateError as error:
            self.recorder.problems.append(str(error))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.recorder.problems.append(
                f"{what} failed with {type(error).__name__} ({damage(error)}) in "
                f"{Path(place.filename).name}, line {place.lineno}; the rest was done. "
                "This is a fault of enginegate: please report it"
            )


def _write(path: Path, make: Callable[[], str]) -> None:
    write_atomic(path, make())
