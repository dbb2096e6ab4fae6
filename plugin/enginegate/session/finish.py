"""What a run leaves behind: lost checks reported, baselines, calibration, history, reports."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from enginegate.files import write_atomic
from enginegate.machine import this_machine
from enginegate.report import append_summary, render_json, render_text, run_html, run_markdown
from enginegate.results import Result
from enginegate.session.costs import Ledger
from enginegate.speed import Rules
from enginegate.verdicts import GateLevel, Refresh, Verdict


@dataclass
class Ending:
    """Writes what is to be written; one thing that fails does not keep the others from it.

    Attributes:
        options: of the run.
        baselines: of this machine.
        lines: what to tell the user.
        problems: what could not be written.
        failures: reasons that the run fails for.
    """

    options: Options
    baselines: Baselines
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def look_for_missing(self, results: Sequence[Result], narrowed: str) -> None:
        """Report what had a baseline and was not judged, unless the run was narrowed."""
        if self.options.gate is not GateLevel.OFF and not self.options.save_engines:
            self._attempt(lambda: self._look_for_missing(results, narrowed))

    def _look_for_missing(self, results: Sequence[Result], narrowed: str) -> None:
        if narrowed and self.baselines.models():
            self.lines.append(f"not looked for lost checks: the run was narrowed by {narrowed}")
        if narrowed:
            return
        found = list(unjudged(self.baselines, results, self.options))
        self.lines += [f"not judged: {line}" for line in found]
        if found and self.options.fails(Verdict.NO_BASELINE):
            self.failures.append(Verdict.NO_BASELINE)

    def settle_baselines(self, results: Sequence[Result], *, interrupted: bool) -> None:
        """Refresh them, or offer what would accept a regression; append the history."""
        if not self.options.save_engines and not self.options.calibrate:
            self._attempt(lambda: self._settle(results, interrupted=interrupted))

    def _settle(self, results: Sequence[Result], *, interrupted: bool) -> None:
        if self.options.history and not self.options.beside:
            machine = self.baselines.machine.id
            append_history(results, self.baselines.root, machine, self.options.rootpath)
        settle = refresh_baselines if self.options.refresh is not Refresh.NONE else offer
        self.lines += settle(self.baselines, results, self.options, interrupted=interrupted)

    def calibrate(
        self, results: Sequence[Result], rules: Rules, measured_s: float, seed: int
    ) -> None:
        """With --calibrate, say and store what the gate is worth here."""
        if self.options.calibrate:
            self._attempt(lambda: self._calibrate(results, rules, measured_s, seed))

    def _calibrate(
        self, results: Sequence[Result], rules: Rules, measured_s: float, seed: int
    ) -> None:
        found = calibrate_results(results, self.options.max_slowdown, rules, measured_s, seed)
        self.lines += calibration_lines(found)
        if found:
            folder = self.baselines.root / self.baselines.machine.id
            path = save_calibration(folder, found, dataclasses.asdict(rules))
            self.lines.append(f"calibration: wrote {os.path.relpath(path)}")

    def compare_with_ceilings(self, results: Sequence[Result], ledger: Ledger) -> None:
        """With --roofline, say what the machine allows and how much of it was reached."""
        self._attempt(lambda: self.lines.extend(ledger.roofline_lines(results)))

    def write_reports(
        self, results: Sequence[Result], condition: Mapping[str, Any], seed: int, ledger: Ledger
    ) -> None:
        """The reports that were asked for."""
        machine, allowed = this_machine(), self.options.allowed
        costs, rooflines = ledger.costs, functools.partial(ledger.rooflines, results)
        report = functools.cache(
            lambda: render_json(results, machine, condition, seed, allowed, costs(), rooflines())
        )
        makers: dict[Path | None, Callable[[], str]] = {
            self.options.report_text: lambda: render_text(results, ledger.lines()) + "\n",
            self.options.report_json: report,
            self.options.report_html: lambda: run_html(report(), self.options.baselines),
            self.options.report_markdown: lambda: run_markdown(report()),
        }
        for path, make in makers.items():
            if path:
                self._attempt(functools.partial(_write, path, make))
        if results:
            self._attempt(lambda: append_summary(lambda: run_markdown(report())))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except EngineGateError as error:
            self.problems.append(str(error))
        except OSError as error:
            named = f"cannot write {error.filename}: {error.strerror}"
            self.problems.append(named if error.filename else str(error))


def _write(path: Path, make: Callable[[], str]) -> None:
    write_atomic(path, make())
