"""What is done with a damaged engine of a run: examined, blamed, repaired."""

from collections.abc import Sequence
from dataclasses import replace

from enginegate.accuracy import EmbeddingJudge
from enginegate.diagnostics import blamed, profiled, repaired
from enginegate.engines import Built, Embeddings, Engine
from enginegate.models import Exported, Workload
from enginegate.results import Result
from enginegate.session import Session
from enginegate.session.preparation import Reference


class Clinic:
    """Examines the engines of a run, as its options say."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def mended(
        self,
        built: Built,
        model: Exported,
        workload: Workload,
        reference: Reference,
        judge: EmbeddingJudge,
    ) -> Built:
        """With --repair, the engine that keeps what it takes to be within its limits."""
        if not self._session.options.repair:
            return built

        def accept(embeddings: Embeddings, engine: Engine) -> tuple[str, ...]:
            return judge.judge(embeddings, engine).faults

        def build(names: Sequence[str]) -> Built:
            prepare = self._session.prepare
            return prepare.build(built.variant, model, workload, reference, names)

        with self._session.progress(f"repair {built.variant.id}"):
            expected, threads = reference.embeddings, self._session.options.threads
            made, repair = repaired(built, build, model, workload, expected, accept, threads)
        if repair:
            self._session.repairs[built.variant] = repair
        return made

    def examined(
        self,
        result: Result,
        built: Built,
        model: Exported,
        workload: Workload,
        embeddings: Embeddings,
        reference: Reference,
    ) -> Result:
        """Record where its time goes and, with --blame, which layers do the damage."""
        threads = self._session.options.threads
        if found := profiled(built, workload, threads):
            share, states, kernels = found.time_share, found.states, found.kernels
            result = replace(result, time_share=share, states=states, kernels=kernels)
        if self._session.options.blame:
            with self._session.progress(f"blame {result.variant.id}"):
                expected = reference.embeddings
                layers = blamed(built, model, workload, embeddings, expected, threads)
            result = replace(result, blame=layers.layers, notes=(*result.notes, *layers.notes))
        return self._session.record(result)
