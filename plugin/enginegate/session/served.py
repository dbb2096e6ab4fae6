"""Served engines of a run: served, judged by the same rules as those in this process, loaded."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from enginegate.accuracy import EmbeddingJudge
from enginegate.baselines import Baseline
from enginegate.config import ServeOptions
from enginegate.engines import Built, Engine
from enginegate.errors import ServingError
from enginegate.models import Exported, Workload
from enginegate.report import described
from enginegate.results import Result
from enginegate.serving import LoadRun, ServedEngine, ToServe, served_rig
from enginegate.session import Session, named
from enginegate.session.comparison import compared_levels
from enginegate.verdicts import Judgement, Refresh, Verdict


@dataclass(frozen=True)
class Hosting:
    """Serves and loads the engines of a session."""

    session: Session

    @contextlib.contextmanager
    def serve(
        self,
        built: Built,
        engine: Engine,
        model: Exported,
        workload: Workload,
        judge: EmbeddingJudge,
    ) -> Iterator[ServedEngine]:
        """The engine on a server, the record of what is served opened and its embeddings judged.

        Raises ServingError as `Desk.serve` does.
        """
        run = self.session
        if run.desk is None:
            raise ServingError("no server was asked for: use --serve triton or --serve URL")
        beside = run.yardstick(built, model, served=True)
        dim = judge.expected.shape[1]
        with run.desk.serve(ToServe(built, beside, engine, model, workload, dim)) as served:
            started = "started" if served.server else "running"
            driver = run.desk.options.driver
            said = f"on a {started} server, {described(served.deployment)}, load by {driver}"
            result = run.start(built, engine.executed, model, workload, said)
            result = replace(result, notes=(*result.notes, *served.notes))
            result = run.judge_embeddings(result, served.embeddings, judge)
            run.record(_with_fault(result, served.fault))
            yield served

    def result(self, served: ServedEngine) -> Result:
        """The record of a served engine."""
        source = served.source
        return self.session.results[named(source.built.variant, source.model, served=True).id]

    def measure(self, served: ServedEngine) -> Result:
        """Load a served engine once, and compare its speed with the baseline's if there is one."""
        if self.result(served).load is None and self.session.desk:
            with self.session.measuring(), self.session.desk.watched():
                self._measure(served, self.session.desk.options)
        return self.result(served)

    def _measure(self, served: ServedEngine, options: ServeOptions) -> None:
        """The load is recorded last: a record without it is measured again."""
        run, result = self.session, self.result(served)
        known, missing = run.baseline_of(result)
        loading = LoadRun(options, run.progress, run.seed)
        stored = known.load if known else None
        if known and stored is None:
            missing = Judgement(Verdict.NO_BASELINE, ("its baseline holds no load",))
        load = loading.measure(served, stored, missing, run.options.max_slowdown)
        if self._is_compared(served, known):
            levels = compared_levels(load, known)
            rig = served_rig(served, levels, run.rng)
            run.judge_speed(result, rig, levels, run.served_judge)
        run.record(replace(self.result(served), load=load))

    def _is_compared(self, served: ServedEngine, known: Baseline | None) -> bool:
        """Whether timing it beside its yardstick tells anything: compared, or to be stored."""
        options = self.session.options
        asked = options.beside or options.refresh is not Refresh.NONE
        return served.server is not None and bool(known or asked)


def _with_fault(result: Result, fault: str) -> Result:
    """The record, failed where the served embeddings are not those of the engine."""
    if not fault or result.accuracy is None:
        return result
    judgement = Judgement(Verdict.FAIL, (fault,))
    return replace(result, accuracy=replace(result.accuracy, judgement=judgement))
