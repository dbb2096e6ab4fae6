"""One run: what it prepares once, what it found, and what it leaves behind."""

import contextlib
import dataclasses
import functools
import os
import random
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from enginegate.accuracy import EmbeddingJudge
from enginegate.baselines import REPLICATES, Baseline, Baselines, stored
from enginegate.config import Options
from enginegate.diagnostics import Repair
from enginegate.engines import (
    Built,
    Embeddings,
    Engine,
    Executed,
    check_installed,
    execution_flags,
    get_backend,
    offered,
    resolve,
)
from enginegate.errors import ModelError
from enginegate.files import sha256_of_json
from enginegate.machine import describe_machine, state_as_json, this_machine
from enginegate.models import Exported, Workload
from enginegate.report import spent_line
from enginegate.results import Context, Result
from enginegate.serving import Desk
from enginegate.session.costs import Ledger
from enginegate.session.finish import Ending
from enginegate.session.preparation import Preparation, Progress
from enginegate.speed import (
    METHOD,
    Rig,
    Rules,
    Samples,
    Speed,
    SpeedJudge,
    Standard,
    Trial,
    beside,
    gating_rules,
)
from enginegate.variants import Variant
from enginegate.verdicts import GateLevel, Judgement, Verdict, exit_status

_SERVED = 4  # replicates of the screening of a served engine


class Session:
    """State of one pytest run with `--precision`."""

    def __init__(self, options: Options, progress: Progress) -> None:
        backend, why = resolve(options.backend)
        check_installed(backend)
        precisions = offered(backend, options.precisions)
        self.options = dataclasses.replace(options, backend=backend, precisions=precisions)
        self.baselines = Baselines(options.baselines, this_machine())
        self.results: dict[str, Result] = {}
        self.ending = Ending(self.options, self.baselines, lines=[why] if why else [])
        self._asked: dict[str, Variant] = {}
        self._started_s = time.monotonic()
        self._measured_s = 0.0
        self.repairs: dict[Variant, Repair] = {}
        self._speeds: dict[tuple[str, int], tuple[Samples, Speed]] = {}
        self.planned: dict[Variant, tuple[int, ...]] = {}
        self.evidence: dict[str, float] = {}
        self.notices: list[tuple[Verdict, str, bool]] = []
        self.ledger = Ledger(self.options)
        self._engines: dict[str, str] = {}
        self._beside: dict[str, str] = {}
        self.seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
        self.rng = random.Random(self.seed)  # noqa: S311 - placement, not secrets
        self._condition = describe_machine()
        self._judge = self._make_judge()
        self.prepare = Preparation(self.options, progress)
        self.progress = progress

    @functools.cached_property
    def desk(self) -> Desk | None:
        """What serves engines; None without --serve."""
        serve = self.options.serve
        return Desk(serve, self.prepare.store, self.progress) if serve else None

    def _make_judge(self) -> SpeedJudge:
        options = self.options
        self._gating = gating_rules(options.replicates, options.max_time_s)
        self.served_judge = self._judge_with(dataclasses.replace(self._gating, replicates=_SERVED))
        many = dataclasses.replace(self._gating, replicates=REPLICATES)
        return self._judge_with(many if options.calibrate else self._gating)

    def _judge_with(self, rules: Rules) -> SpeedJudge:
        return SpeedJudge(Trial(rules, time.monotonic), self.options.allowed, self.evidence)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Count what happens inside as measurement."""
        start_s = time.monotonic()
        yield
        self._measured_s += time.monotonic() - start_s

    def start(
        self,
        built: Built,
        executed: Executed,
        model: Exported,
        workload: Workload,
        deployment: str = "",
    ) -> Result:
        """Open the record of a variant, in this process or as a server deploys it."""
        variant = named(built.variant, model, served=bool(deployment))
        context = self._context(model, workload)
        result = Result(
            variant=variant,
            context=dataclasses.replace(context, deployment=deployment),
            backend=get_backend(built.backend).version(),
            chosen=built.precision,
            executed=executed.matmuls,
            ran=executed.summary,
            flags=execution_flags(built, executed),
            notes=tuple(note for note in (*built.notes, model.note) if note),
            size_bytes=built.size_bytes,
            repair=self.repairs.get(built.variant),
        )
        self._refuse_second(built.variant, variant.id)
        self._engines[variant.id] = built.entry.folder.name
        self.ledger.note(variant.id, model, built.backend, built.precision, executed)
        return self.record(result)

    def _refuse_second(self, asked: Variant, name: str) -> None:
        """Two models of one name would overwrite each other's figures."""
        if self._asked.setdefault(name, asked) != asked:
            raise ModelError(
                f"two models of this run are both named {name}: a `model` fixture that is "
                "overridden serves one model, so name only one with --model"
            )

    def _context(self, model: Exported, workload: Workload) -> Context:
        return Context(
            weights=model.weights,
            tokenizer="tokenizer.json" if model.tokenizer else "hashed words",
            workload=workload.name,
            workload_sha256=workload.sha256,
            texts=workload.shape[0],
            seq_len=workload.shape[1],
            model_sha256=model.sha256,
            reference=f"{get_backend('onnxruntime').version()} fp32",
            threads=self.options.threads,
            method=METHOD,
            against="itself" if self.options.calibrate else self.options.beside,
        )

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
            accuracy = judge.judge(found, engine)
            accuracy = judge.probed(accuracy, engine) if engine else accuracy
        accuracy = judge.rebuilt(accuracy, found, builds)
        return self.record(dataclasses.replace(result, accuracy=accuracy))

    def plan(self, parameters: Iterable[Mapping[str, Any]]) -> None:
        """Note the batch sizes that tests will ask for, by their parameters."""
        for found in parameters:
            variant, batch = found.get("enginegate_variant"), found.get("batch_size")
            if isinstance(variant, Variant) and isinstance(batch, int):
                known = self.planned.get(variant, ())
                self.planned[variant] = tuple(sorted({*known, batch}))

    def rig(self, built: Built, model: Exported, workload: Workload) -> Rig:
        """What times a variant: beside the baseline's engine with --against, or the reference."""
        old = self.yardstick(built, model, served=False)
        return self.prepare.rig(built, old, model, workload, self.rng)

    def yardstick(self, built: Built, model: Exported, *, served: bool) -> Built | None:
        """The engine to measure beside; None for the reference."""
        variant = named(built.variant, model, served=False)
        old = self.prepare.baseline_engine(variant) if self.options.beside else None
        old = built if self.options.calibrate else old
        name = dataclasses.replace(variant, served=served).id
        self._beside[name] = old.content_sha256 if old else ""
        return old

    def measured(self, result: Result, rig: Rig, batch: int) -> Samples:
        """The samples of one batch size; its verdict is then in `speed_of`.

        The first call of a variant measures all of its planned batch sizes.
        """
        name = result.variant.id
        if (name, batch) not in self._speeds:
            planned = self.planned.get(self._asked[name], ())
            batches = planned if batch in planned else (batch,)
            with self.measuring():
                self.judge_speed(result, rig, batches, self._judge)
        return self._speeds[name, batch][0]

    def speed_of(self, result: Result, batch: int) -> Speed:
        """The judged speed of a batch size that was measured."""
        return self._speeds[result.variant.id, batch][1]

    def judge_speed(
        self, result: Result, rig: Rig, batches: Sequence[int], judge: SpeedJudge
    ) -> None:
        """Measure batch sizes, or levels of a served engine, and record their speeds, judged."""
        name, standard = result.variant.id, self.standard(result, batches)
        cell = f"{name}@{self._about(result)}"
        judged = judge.judge(rig, batches, standard, cell)
        self._speeds |= {(name, batch): found for batch, found in judged.items()}
        speeds = tuple(speed for _, speed in judged.values())
        latest = self.results[name]
        self.record(dataclasses.replace(latest, speeds=(*latest.speeds, *speeds)))

    def _about(self, result: Result) -> str:
        """What evidence is about, hashed: both engines, the limits, and what figures go with."""
        context = dataclasses.asdict(result.context)
        limits = [self.options.max_slowdown, self.options.max_slowdown_p99]
        engines = [self._engines[result.variant.id], self._beside[result.variant.id]]
        return sha256_of_json([context, limits, engines])[:16]

    def standard(self, result: Result, batches: Sequence[int]) -> Standard:
        """What to compare a variant with, or the reason why there is nothing."""
        paired = self.options.beside or self.options.calibrate
        if paired and self.options.gate is not GateLevel.OFF:
            return self._paired(result, batches)
        baseline, missing = self.baseline_of(result)
        return stored(baseline, batches) if baseline else Standard({}, {}, missing)

    def baseline_of(self, result: Result) -> tuple[Baseline | None, Judgement]:
        """The stored baseline of a variant if this run can be compared with it; else why not."""
        model, context = result.variant.model, result.context
        if self.options.gate is GateLevel.OFF:
            return None, Judgement(Verdict.NO_BASELINE, ("not compared: --gate off",))
        if self.options.beside or self.options.calibrate:
            said = "cliffs and capacity are compared with stored baselines only"
            return None, Judgement(Verdict.NOT_MEASURED, (said,))
        if result.variant.served and self.options.serve and self.options.serve.endpoint:
            said = "a server that ran already is not compared"
            return None, Judgement(Verdict.NO_BASELINE, (said,))
        baseline = self.baselines.load(model).get(result.variant.key)
        if baseline is not None:
            difference = baseline.difference(context)
            unlike = Judgement(Verdict.INCOMPARABLE, (difference,))
            return (None, unlike) if difference else (baseline, Judgement(Verdict.PASS))
        if others := self.baselines.other_machines(model):
            reason = f"baselines are of {', '.join(others)}, this is another"
            return None, Judgement(Verdict.INCOMPARABLE, (reason,))
        path = os.path.relpath(self.baselines.path(model))
        advice = f"none in {path}; write it with --refresh-baselines"
        return None, Judgement(Verdict.NO_BASELINE, (advice,))

    def _paired(self, result: Result, batches: Sequence[int]) -> Standard:
        if self._beside[result.variant.id]:
            return beside(batches)
        reason = f"{self.options.beside} has no engine of it"
        return Standard({}, {}, Judgement(Verdict.NO_BASELINE, (reason,)))

    def record(self, result: Result) -> Result:
        """Keep the latest of a variant."""
        self.results[result.variant.id] = result
        return result

    def finish(self, *, interrupted: bool, narrowed: str) -> None:
        """Write baselines and reports; what cannot be written goes to the ending's problems."""
        results, ending = list(self.results.values()), self.ending
        if results:
            elapsed_s = time.monotonic() - self._started_s
            ending.lines.append(spent_line(self._measured_s, elapsed_s - self._measured_s))
        ending.look_for_missing(results, narrowed)
        ending.settle_baselines(results, interrupted=interrupted)
        ending.calibrate(results, self._gating, self._measured_s, self.seed)
        ending.compare_with_ceilings(results, self.ledger)
        condition = self._condition | {"gpu_after": state_as_json()}
        ending.write_reports(results, condition, self.seed, self.ledger)
        self.prepare.close()

    def exit_status(self) -> int:
        """0, 1, or one of `Exit`."""
        return exit_status([*self.ending.failures, *("error" for _ in self.ending.problems)])


def named(variant: Variant, model: Exported, *, served: bool) -> Variant:
    """The variant under its model's own name."""
    return dataclasses.replace(variant, model=model.spec.name, served=served)
