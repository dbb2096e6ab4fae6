"""An engine of a run repaired, profiled and blamed, as the options say."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from enginegate.accuracy import EmbeddingJudge
from enginegate.diagnostics import blamed, profiled, repaired
from enginegate.engines import Built, Embeddings, Engine
from enginegate.models import Exported, Workload
from enginegate.results import Result
from enginegate.session.preparation import Reference

if TYPE_CHECKING:
    from enginegate.session import Session


def repaired_engine(
    session: "Session",
    built: Built,
    model: Exported,
    workload: Workload,
    reference: Reference,
    judge: EmbeddingJudge,
) -> Built:
    """With --gate-repair, the engine that keeps what it takes to be within its limits."""
    if not session.options.repair:
        return built

    def accept(embeddings: Embeddings, engine: Engine) -> tuple[str, ...]:
        return judge.judge(embeddings, engine).faults

    def build(names: Sequence[str]) -> Built:
        return session.prepare.build(built.variant, model, workload, reference, names)

    ranges = session.prepare.ranges(built, model, workload)
    needed = ranges.keep if ranges else ()
    with session.progress(f"repair {built.variant.id}"):
        expected, threads = reference.embeddings, session.options.threads
        again, repair = repaired(built, build, model, workload, expected, accept, threads, needed)
    if repair:
        session.recorder.repairs[built.variant] = repair
    return again


def diagnosed(
    session: "Session",
    result: Result,
    built: Built,
    model: Exported,
    workload: Workload,
    embeddings: Embeddings,
    reference: Reference,
) -> Result:
    """Record where its time goes and, with --gate-blame, which layers do the damage.

    Of an engine that is its baseline's own, which is not timed, nothing is profiled.
    """
    threads, recorder = session.options.threads, session.recorder
    timed = session.comparisons.identical(recorder.latest(result)) is None
    if timed and (found := profiled(built, workload, threads)):
        share, states, kernels = found.time_share, found.states, found.kernels
        result = recorder.update(result, time_share=share, states=states, kernels=kernels)
    if session.options.blame:
        with session.progress(f"blame {result.variant.id}"):
            expected = reference.embeddings
            layers = blamed(built, model, workload, embeddings, expected, threads)
        notes = (*result.notes, *layers.notes)
        result = recorder.update(result, blame=layers.layers, notes=notes)
    return result
