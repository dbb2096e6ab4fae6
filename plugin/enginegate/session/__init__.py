"""One run: what it prepares once, what it found, and what it leaves behind. Knows no pytest."""

import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from enginegate.accuracy import EmbeddingJudge, with_ranges
from enginegate.baselines import REPLICATES, Baselines
from enginegate.config import Options
from enginegate.engines import (
    Built,
    Embeddings,
    Engine,
    Executed,
    Ranges,
    check_beside,
    check_runnable,
    execution_flags,
    get_backend,
    kept_notes,
    offered,
    resolve,
)
from enginegate.machine import describe_machine, this_machine
from enginegate.models import Exported, Workload
from enginegate.results import DOUBT, Context, Result
from enginegate.serving import EngineServer
from enginegate.session.again import task_of
from enginegate.session.brief import BRIEFLY, brief_rig, measured_before, shown, tell, wants_long
from enginegate.session.comparison import (
    Comparisons,
    built_otherwise,
    compared,
    measured_beside,
    named,
)
from enginegate.session.costs import ModelCosts
from enginegate.session.diagnosis import diagnosed, repaired_engine
from enginegate.session.estimate import announced, plan_of
from enginegate.session.finish import finish_run
from enginegate.session.fleet import run_fleet
from enginegate.session.leftovers import sweep_leftovers
from enginegate.session.preparation import Preparation, Progress, Reference, context_of
from enginegate.session.recorder import Recorder
from enginegate.session.served import load_engine, serve_engine, served_result
from enginegate.session.shards import divided, part_line, share_of
from enginegate.session.truth import judged_reference
from enginegate.session.worth import twin_of
from enginegate.speed import (
    FEWEST_REPLICATES,
    Measured,
    Rig,
    Rules,
    SequentialTest,
    SpeedJudge,
    Suspects,
    Unchanged,
    gating_rules,
)
from enginegate.variants import Variant
from enginegate.verdicts import Refresh

_UNJUDGED = f"{DOUBT}the project's own `reference` was not compared with the model"

__all__ = [
    "Progress", "Recorder", "Reference", "Session", "announced", "diagnosed", "finish_run",
    "judged_reference", "load_engine", "open_session", "plan_of", "repaired_engine", "run_fleet",
    "serve_engine", "served_result",
]  # fmt: skip

_SERVED = 4  # replicates of the screening of a served engine: each loads all models anew


@dataclass(frozen=True)
class Session:
    """One pytest run with `--precision`.

    Attributes:
        options: with the backend that `auto` is, and the precisions it offers.
        prepare: makes models, texts, references, engines.
        comparisons: what each variant is compared with.
        rules: of the gate.
        judge, served_judge: time engines of this process, and served ones.
        brief: times those that there is nothing to compare with.
        server: serves engines; None without --gate-serve.
        costs: of the models, on demand.
        recorder: what was found.
        progress, live: tell of long steps, and how far one is where that can be seen.
        seed: of all that is drawn.
        rng: order of loading, and placement in memory.
        condition: of the machine at the start.
    """

    options: Options
    prepare: Preparation
    comparisons: Comparisons
    rules: Rules
    judge: SpeedJudge
    brief: SpeedJudge
    served_judge: SpeedJudge
    server: EngineServer | None
    costs: ModelCosts
    recorder: Recorder
    progress: Progress
    live: Callable[[str], None]
    seed: int
    rng: random.Random
    condition: Mapping[str, Any] = field(default_factory=describe_machine)

    def start(
        self,
        built: Built,
        executed: Executed,
        model: Exported,
        workload: Workload,
        deployment: str = "",
    ) -> Result:
        """Open the record of a variant, in this process or as a server deploys it."""
        context = context_of(self.options, built.backend, model, workload, deployment)
        ranges = self.prepare.ranges(built, model, workload)
        result = _begun(self, built, executed, model, context, ranges)
        self.recorder.note_engine(result, built, model.spec)
        self.costs.note(result.variant.id, model, built.backend, built.precision, executed)
        return self.recorder.open(built.variant, result)

    def judge_embeddings(
        self,
        result: Result,
        found: Embeddings,
        judge: EmbeddingJudge,
        engine: Engine | None = None,
        builds: Iterable[Embeddings] = (),
    ) -> Result:
        """Record how far embeddings are off, and whether those of `engine` depend on a batch.

        `builds` are the embeddings of further builds of it.
        """
        with self.progress(f"accuracy of {result.variant.id}"):
            accuracy = with_ranges(judge.judge(found, engine), result.ranges)
            accuracy = judge.examined(accuracy, found, engine) if engine else accuracy
        accuracy = judge.rebuilt(accuracy, found, builds)
        judged = replace(result, accuracy=accuracy)
        return self.recorder.keep(replace(judged, same_as=twin_of(judged, self.recorder)))

    def rig(self, built: Built, model: Exported, workload: Workload) -> Rig:
        """Time a variant beside its baseline's engine, or its control where there is none."""
        control, way = self.comparisons.control(built, model)
        if control and not way:
            self.recorder.lines += built_otherwise(control, built)
        rig = self.prepare.rig(built, control, model, workload, self.rng)
        if control is None:
            task = task_of(built, self.prepare.own_control(built, model, workload), model, workload)
            self.recorder.rigs[named(built.variant, model, served=False).id] = rig.open_arms, task
        return replace(rig, compared=replace(compared(built, control), way=way))

    def unchanged(self, result: Result) -> Unchanged | None:
        """The answer for a variant that is its baseline's own engine; None for any other."""
        judgement = self.comparisons.identical(self.recorder.latest(result))
        if judgement is None:
            return None
        self.recorder.update(result, identical=judgement.reasons[0])
        return Unchanged(judgement)

    def measured(self, result: Result, rig: Rig, batch: int) -> Measured:
        """One batch size, timed and judged.

        The first call of a variant measures all of its planned batch sizes.
        """
        known, name = self.recorder.measured, result.variant.id
        if (name, batch) not in known:
            batches = self.recorder.batches_with(result, batch)
            with self.recorder.measuring(), self.progress(f"speed of {name}") as say:
                tell(say, f"batch {', '.join(map(str, batches))}")
                self.judge_speed(result, rig, batches, self.judge)
        return known[name, batch]

    def judge_speed(
        self, result: Result, rig: Rig, batches: Sequence[int], judge: SpeedJudge
    ) -> None:
        """Measure batch sizes, or levels of a served engine, and record their speeds, judged."""
        comparison = self.comparisons.of(result, batches, rig.compared)
        name, found = result.variant.id, dict[int, Measured]()
        if not (comparison.anchors or result.variant.served or wants_long(self.options)):
            rig, judge = brief_rig(rig, batches), self.brief
            self.recorder.note(result, BRIEFLY)
            found = measured_before(self.recorder, result, batches, comparison.missing)
        if not found:
            self.recorder.note_timed(result, rig, batches)
            key = self.comparisons.evidence_key(result, rig.compared)
            found = judge.judge(shown(rig, self.live), batches, comparison, key)
        self.recorder.measured |= {(name, batch): one for batch, one in found.items()}
        timed = self.recorder.add_speeds(result, [one.speed for one in found.values()])
        self.recorder.keep(measured_beside(timed, rig.compared))


def _begun(
    session: Session,
    built: Built,
    executed: Executed,
    model: Exported,
    context: Context,
    ranges: Ranges | None,
) -> Result:
    """The record of a variant before anything is compared."""
    variant = named(built.variant, model, served=bool(context.deployment))
    flags = execution_flags(built, executed)
    why = model.spec.accept.get(variant.precision, {}).get("executed", "")
    doubts = _doubts(session, variant)
    notes = [*built.notes, model.note, *kept_notes(built, executed), *doubts]
    if why and not flags:
        notes.append(f"nothing to accept here, what was requested ran: {why}")
    return Result(
        variant=variant,
        context=context,
        backend=get_backend(built.backend).version(),
        chosen=built.precision,
        executed=executed.matmuls,
        ran=executed.summary,
        flags=() if why else flags,
        accepted=tuple(f"{flag}; accepted: {why}" for flag in flags) if why else (),
        notes=tuple(filter(None, notes)),
        size_bytes=built.size_bytes,
        repair=session.recorder.repairs.get(built.variant),
        provenance=session.prepare.provenance(built),
        truth=session.recorder.truths.get(model.spec.name),
        ranges=ranges,
    )


def _doubts(session: Session, variant: Variant) -> tuple[str, ...]:
    """Notes against the reference of a variant."""
    recorder, model = session.recorder, variant.model
    lost = session.comparisons.lost_truth(variant, recorder.truths.get(model))
    known = recorder.doubts.get(model, (_UNJUDGED,))
    return (*known, DOUBT + lost) if lost else known


def open_session(
    options: Options,
    progress: Progress,
    evidence: Mapping[str, float] | None = None,
    live: Callable[[str], None] = lambda _: None,
) -> Session:
    """Begin a run; `evidence` is what earlier runs left. Raises errors of the family."""
    backend, why = resolve(options.backend)
    check_runnable(backend)
    check_beside(options.against, options.rootpath, options.against_python)
    options, part = divided(options)
    options = replace(options, backend=backend, precisions=offered(backend, options.precisions))
    lines = [*([why] if why else []), *part_line(part)]
    recorder = Recorder(evidence=dict(evidence or {}), lines=lines, shard=part)
    sweep_leftovers(options)
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    rules = gating_rules(options.replicates, options.max_time_s, share_of(options))

    suspects = Suspects(rules.alarm)  # of this process and served ones
    early = options.refresh is Refresh.NONE and not options.calibrate  # else all are kept

    def judge(replicates: int) -> SpeedJudge:
        own = replace(rules, replicates=replicates, early=early)
        trial = SequentialTest(own, time.monotonic, suspects)
        return SpeedJudge(trial, options.allowed, recorder.evidence)

    prepare = Preparation(options, progress)
    return Session(
        options=options,
        prepare=prepare,
        comparisons=Comparisons(options, Baselines(options.baselines, this_machine()), prepare),
        rules=rules,
        brief=judge(FEWEST_REPLICATES),
        judge=judge(REPLICATES if options.calibrate else rules.replicates),
        served_judge=judge(_SERVED),
        server=EngineServer(options.serve, prepare.store, progress) if options.serve else None,
        costs=ModelCosts(options),
        recorder=recorder,
        progress=progress,
        live=live,
        seed=seed,
        rng=random.Random(seed),  # noqa: S311 - placement, not secrets
    )
