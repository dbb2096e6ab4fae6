"""A served engine of a run: served, judged by the same rules as one in this process, loaded."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from enginegate.accuracy import EmbeddingJudge
from enginegate.baselines import Baseline
from enginegate.config import ServeOptions
from enginegate.engines import Built, Engine
from enginegate.errors import ServingError
from enginegate.models import Exported, Workload
from enginegate.report import described
from enginegate.results import Result
from enginegate.serving import LoadRun, ServedEngine, ToServe, served_rig
from enginegate.session.comparison import compared, compared_levels, named
from enginegate.verdicts import Judgement, Refresh, Verdict

if TYPE_CHECKING:
    from enginegate.session import Session


@contextlib.contextmanager
def serve_engine(
    session: "Session",
    built: Built,
    engine: Engine,
    model: Exported,
    workload: Workload,
    judge: EmbeddingJudge,
) -> Iterator[ServedEngine]:
    """The engine on a server, the record of what is served opened and its embeddings judged.

    Raises ServingError as `EngineServer.serve` does.
    """
    server = session.server
    if server is None:
        raise ServingError("no server was asked for: use --gate-serve triton or --gate-serve URL")
    if model.spec.multi:
        raise ServingError(
            "a model with a vector for every token is not served yet: leave out --gate-serve"
        )
    control, dim = session.comparisons.named_control(built, model), judge.expected.shape[1]
    with server.serve(ToServe(built, control, engine, model, workload, dim)) as served:
        started = "started" if served.server else "running"
        driver = server.options.driver
        said = f"on a {started} server, {described(served.deployment)}, load by {driver}"
        result = session.start(built, engine.executed, model, workload, said)
        result = session.recorder.update(result, notes=(*result.notes, *served.notes))
        result = session.judge_embeddings(result, served.embeddings, judge)
        session.recorder.keep(_with_fault(result, served.fault))
        yield served


def served_result(session: "Session", served: ServedEngine) -> Result:
    """The record of a served engine."""
    source = served.source
    return session.recorder.results[named(source.built.variant, source.model, served=True).id]


def load_engine(session: "Session", served: ServedEngine) -> Result:
    """Load a served engine once, and compare its speed with the baseline's if there is one."""
    if served_result(session, served).load is None and session.server:
        with session.recorder.measuring(), session.server.watched():
            _load(session, served, session.server.options)
    return served_result(session, served)


def _load(session: "Session", served: ServedEngine, options: ServeOptions) -> None:
    """The load is recorded last: a record without it is measured again."""
    result = served_result(session, served)
    known, missing = session.comparisons.baseline_of(result)
    stored = known.load if known else None
    if known and stored is None:
        missing = Judgement(Verdict.NO_BASELINE, ("its baseline holds no load",))
    loading = LoadRun(options, session.progress, session.seed)
    load = loading.measure(served, stored, missing, session.options.max_slowdown)
    if _is_compared(session, served, known):
        levels = compared_levels(load, known)
        engines = compared(served.source.built, served.source.beside)
        rig = replace(served_rig(served, levels, session.rng), compared=engines)
        session.judge_speed(result, rig, levels, session.served_judge)
    session.recorder.update(result, load=load)


def _is_compared(session: "Session", served: ServedEngine, known: Baseline | None) -> bool:
    """Tell if timing it beside its control is of use: compared, or to be stored."""
    options = session.options
    asked = options.beside or options.refresh is not Refresh.NONE
    return served.server is not None and bool(known or asked)


def _with_fault(result: Result, fault: str) -> Result:
    """The record, failed where the served embeddings are not those of the engine."""
    if not fault or result.accuracy is None:
        return result
    judgement = Judgement(Verdict.FAIL, (fault,))
    return replace(result, accuracy=replace(result.accuracy, judgement=judgement))
