"""What a run leaves behind: lost checks reported, baselines, calibration, history, reports."""

import contextlib
import dataclasses
import functools
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from enginegate.errors import EngineError, EngineGateError
from enginegate.files import damage, write_atomic
from enginegate.machine import state_as_json, this_checkout, this_machine
from enginegate.report import (
    append_summary,
    interrupted_line,
    origin_of,
    render_json,
    render_text,
    run_html,
    run_markdown,
    spent_line,
)
from enginegate.results import Result
from enginegate.session.again import Speeds, measure_again
from enginegate.session.costs import ModelCosts
from enginegate.session.recorder import Recorder
from enginegate.session.shards import ending_of
from enginegate.session.worth import weighed
from enginegate.speed import Rules
from enginegate.verdicts import GateLevel, Refresh, Verdict

if TYPE_CHECKING:
    from enginegate.session import Session

Again = Callable[[Sequence[Result]], Sequence[Speeds]]
ACCEPT = Path(".enginegate", "accept")


def finish_run(session: "Session", *, interrupted: str, narrowed: str) -> None:
    """Write baselines and reports; what cannot be written is one of the recorder's problems.

    `interrupted` says by what the run was stopped; empty for one that came to its end.
    """
    recorder, costs = session.recorder, session.costs
    recorder.interrupted = interrupted
    recorder.lines += [interrupted_line(interrupted)] if interrupted else []
    for result in weighed(list(recorder.results.values()), recorder.worth):
        recorder.keep(result)
    results = list(recorder.results.values())
    output = RunOutput(session.options, session.comparisons.baselines, recorder)
    again = functools.partial(_measured_again, session)
    if results:
        recorder.lines.append(spent_line(recorder.measured_s, recorder.other_s))
    output.look_for_missing(results, narrowed)
    output.settle_baselines(results, again, interrupted=bool(interrupted))
    if not interrupted:  # what is still to be measured is measured by the next run
        output.calibrate(results, session.rules, session.seed)
        output.compare_with_ceilings(results, costs)
    condition = {**session.condition, "gpu_after": state_as_json()}
    output.write_reports(results, condition, session.seed, costs, ending_of(session))
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
        options, lines = self.options, self.recorder.lines
        if options.gate is GateLevel.OFF or options.save_engines:
            return
        with self._noting_problems():
            if narrowed and self.baselines.models():
                lines.append(f"not looked for lost checks: the run was narrowed by {narrowed}")
            found = [] if narrowed else list(self._missing(results))
            lines += [f"not judged: {line}" for line in found]
            if found and options.fails(Verdict.NO_BASELINE):
                self.recorder.fail(Verdict.NO_BASELINE)

    def _missing(self, results: Sequence[Result]) -> Iterator[str]:
        options, served = self.options, bool(self.options.serve)
        left_out = self.baselines.models() if options.models_narrowed else options.specs
        asked = (options.models, left_out, options.precisions, options.elsewhere)
        return unjudged(self.baselines, results, *asked, served=served)

    def settle_baselines(
        self, results: Sequence[Result], again: Again, *, interrupted: bool
    ) -> None:
        """Refresh them, or offer what would accept a regression; append the history if wanted.

        `again` measures further sessions of what is written.
        """
        options = self.options
        if options.save_engines or options.calibrate:
            return
        with self._noting_problems():
            as_stored = [r for r in results if not (r.context.against or r.identical)]
            refreshed = options.refresh is not Refresh.NONE and not options.dry_run
            if options.history or (refreshed and not interrupted):
                machine = self.baselines.machine.id
                timed = [result for result in results if result.speeds]
                append_history(timed, self.baselines.root, machine, options.rootpath)
                self.recorder.lines += _unnoted(results) if options.history else ()
            if options.refresh is Refresh.NONE:
                shown = () if interrupted else as_stored
                self.recorder.lines += offer(self.baselines, shown, options.rootpath / ACCEPT)
                self.recorder.lines += () if options.beside else _how_to_accept(results)
            elif interrupted:
                self.recorder.lines.append("baselines: the run was interrupted, none was written")
            else:
                self.recorder.lines += refresh_baselines(
                    self.baselines,
                    results,
                    options.batches,
                    options.refresh,
                    again,
                    regressed=options.accept_regressions,
                    dry_run=options.dry_run,
                )

    def calibrate(self, results: Sequence[Result], rules: Rules, seed: int) -> None:
        """With --gate-calibrate, say and store what the gate is worth here."""
        if not self.options.calibrate:
            return
        with self._noting_problems():
            spent_s = self.recorder.measured_s
            found = calibrate_results(results, self.options.max_slowdown, rules, spent_s, seed)
            self.recorder.lines += calibration_lines(found)
            if found:
                folder = self.baselines.root / self.baselines.machine.id
                path = save_calibration(folder, found, dataclasses.asdict(rules))
                self.recorder.lines.append(f"calibration: wrote {os.path.relpath(path)}")

    def compare_with_ceilings(self, results: Sequence[Result], costs: ModelCosts) -> None:
        """With --gate-roofline, say what the machine allows and how much of it was reached."""
        with self._noting_problems():
            self.recorder.lines.extend(costs.roofline_lines(results))

    def write_reports(
        self,
        results: Sequence[Result],
        condition: Mapping[str, Any],
        seed: int,
        costs: ModelCosts,
        ending: Mapping[str, Any],
    ) -> None:
        """The reports that were asked for; `ending` is how the run ended, for a merge."""
        options, machine = self.options, this_machine()
        stopped = self.recorder.interrupted
        counted = costs.costs
        rooflines = functools.partial(costs.rooflines, () if stopped else results)
        made = (machine, condition, seed, options.allowed)

        @functools.cache
        def report() -> str:
            origin = origin_of(this_checkout(options.rootpath, options.baselines, options.against))
            return render_json(results, *made, counted(), rooflines(), stopped, origin, ending)

        makers: dict[Path | None, Callable[[], str]] = {
            options.report_text: lambda: (
                render_text(results, [*costs.lines(), *self._stopped_lines()], stopped) + "\n"
            ),
            options.report_json: report,
            options.report_html: lambda: run_html(report(), options.baselines),
            options.report_markdown: lambda: run_markdown(report()),
        }
        for path, make in makers.items():
            if path:
                with self._noting_problems(str(path)):
                    write_atomic(path, make())
        if results:
            with self._noting_problems():
                append_summary(lambda: run_markdown(report()))

    def _stopped_lines(self) -> list[str]:
        stopped = self.recorder.interrupted
        return [interrupted_line(stopped)] if stopped else []

    @contextlib.contextmanager
    def _noting_problems(self, what: str = "the ending of the run") -> Iterator[None]:
        """Note what fails inside, of any kind: it keeps nothing else from being written."""
        try:
            yield
        except EngineGateError as error:
            self.recorder.problems.append(str(error))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.recorder.problems.append(
                f"{what} failed with {type(error).__name__} ({damage(error)}) in "
                f"{Path(place.filename).name}, line {place.lineno}; the rest was done. "
                "This is a fault of enginegate: please report it"
            )


def _timed_once(names: Sequence[str]) -> str:
    return f"baselines: one session of {', '.join(names)}: the project's own `rig` timed it"


def _measured_again(session: "Session", written: Sequence[Result]) -> list[Speeds]:
    """Further sessions of a refresh, each in a fresh process; all variants take turns."""
    options, recorder = session.options, session.recorder
    tasks = {r.variant.id: t for r in written if (t := recorder.tasks.get(r.variant.id))}
    others = [r.variant.id for r in written if r.variant.id not in tasks and not r.variant.served]
    if others and options.sessions > 1:
        recorder.lines.append(_timed_once(others))
    found = []
    for number in range(2, options.sessions + 1 if tasks else 2):
        with session.progress(f"session {number} of {options.sessions}"), recorder.measuring():
            try:
                found.append(measure_again(tasks, options, session.rng))
            except EngineError as error:
                recorder.problems.append(str(error))
                break
    return found


def _unnoted(results: Sequence[Result]) -> Iterator[str]:
    """The engines that the history has no figure of."""
    if names := [result.variant.id for result in results if not result.speeds]:
        yield f"history: not noted, as they were not timed: {', '.join(names)}"


def _how_to_accept(results: Sequence[Result]) -> Iterator[str]:
    """The way to accept engines that regressed beside their baseline's own."""
    beside = [r for r in results if r.context.against and r.speed_verdict is Verdict.REGRESSED]
    if names := [result.variant.id for result in beside if result.embeddings_passed]:
        yield (
            f"to accept {', '.join(names)}: run again with --gate-refresh-baselines "
            "--gate-accept-regressions, and commit the baselines"
        )
