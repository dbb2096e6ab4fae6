"""What a variant is compared with: a stored baseline, or the engine it is measured beside."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from enginegate.baselines import Baseline, Baselines
from enginegate.config import Options
from enginegate.engines import Built
from enginegate.files import sha256_of_json
from enginegate.models import Exported
from enginegate.results import Result
from enginegate.serving import Load
from enginegate.session.preparation import Preparation
from enginegate.speed import METRICS, Compared, Comparison, anchor_of, paired
from enginegate.variants import Variant
from enginegate.verdicts import GateLevel, Judgement, Verdict


@dataclass(frozen=True)
class Comparisons:
    """Answers of a run, one for each variant.

    Attributes:
        options: of the run.
        baselines: of this machine.
        prepare: gives the engines to measure beside.
    """

    options: Options
    baselines: Baselines
    prepare: Preparation

    def control(self, built: Built, model: Exported) -> Built | None:
        """The engine to measure beside; None for the reference."""
        if self.options.calibrate:
            return built
        variant = named(built.variant, model, served=False)
        return self.prepare.baseline_engine(variant) if self.options.beside else None

    def of(self, result: Result, batches: Sequence[int], compared: Compared | None) -> Comparison:
        """What to compare a variant with, or the reason why there is nothing."""
        beside = self.options.beside or self.options.calibrate
        if beside and self.options.gate is not GateLevel.OFF:
            return self._paired(batches, compared)
        baseline, missing = self.baseline_of(result)
        return _stored(baseline, batches) if baseline else Comparison({}, {}, missing)

    def _paired(self, batches: Sequence[int], compared: Compared | None) -> Comparison:
        if compared and compared.control:
            return paired(batches)
        lacking = f"{self.options.beside} has no engine of it"
        unknown = "the `rig` fixture does not say what it measures beside (Rig.compared)"
        reason = lacking if compared else unknown
        return Comparison({}, {}, Judgement(Verdict.NO_BASELINE, (reason,)))

    def baseline_of(self, result: Result) -> tuple[Baseline | None, Judgement]:
        """The stored baseline of a variant if this run can be compared with it; else why not."""
        if why := self._not_compared(result):
            return None, why
        model, context = result.variant.model, result.context
        baseline = self.baselines.load(model).get(result.variant.key)
        if baseline is not None:
            difference = baseline.difference(context)
            unlike = Judgement(Verdict.INCOMPARABLE, (difference,))
            return (None, unlike) if difference else (baseline, Judgement(Verdict.PASS))
        if others := self.baselines.other_machines(model):
            reason = f"baselines are of {', '.join(others)}, this is another"
            return None, Judgement(Verdict.INCOMPARABLE, (reason,))
        path = os.path.relpath(self.baselines.path(model))
        advice = f"none in {path}; write it with --gate-refresh-baselines"
        return None, Judgement(Verdict.NO_BASELINE, (advice,))

    def _not_compared(self, result: Result) -> Judgement | None:
        """Why a run like this compares with no stored baseline; None if it does."""
        if self.options.gate is GateLevel.OFF:
            return Judgement(Verdict.NO_BASELINE, ("not compared: --gate-level off",))
        if self.options.beside or self.options.calibrate:
            said = "cliffs and capacity are compared with stored baselines only"
            return Judgement(Verdict.NOT_MEASURED, (said,))
        if result.variant.served and self.options.serve and self.options.serve.endpoint:
            said = "a server that ran already is not compared"
            return Judgement(Verdict.NO_BASELINE, (said,))
        return None

    def evidence_key(self, result: Result, compared: Compared | None) -> str:
        """Names what evidence is about: both engines, the limits, and what figures go with.

        Without knowing both engines, evidence of another run would be about another thing: empty.
        """
        if compared is None:
            return ""
        limits = [self.options.max_slowdown, self.options.max_slowdown_p99]
        engines = [compared.candidate, compared.control]
        about = sha256_of_json([asdict(result.context), limits, engines])[:16]
        return f"{result.variant.id}@{about}"


def _stored(baseline: Baseline, batches: Sequence[int]) -> Comparison:
    """The sessions of a stored baseline."""
    known = [batch for batch in batches if batch in baseline.cells]
    ratios = {(b, metric): baseline.log_ratios(b, metric) for b in known for metric in METRICS}
    anchors = {key: anchor_of(found) for key, found in ratios.items() if found}
    scales_s = {batch: baseline.cells[batch][-1].p50_s for batch in known}
    lacking = Judgement(Verdict.NO_BASELINE, ("no such batch size in it",))
    return Comparison(anchors, scales_s, lacking)


def compared(built: Built, control: Built | None) -> Compared:
    """Names of both engines of a rig."""
    return Compared(built.entry.folder.name, control.content_sha256 if control else "")


def named(variant: Variant, model: Exported, *, served: bool) -> Variant:
    """The variant under its model's own name."""
    return replace(variant, model=model.spec.name, served=served)


def compared_levels(load: Load, known: Baseline | None) -> tuple[int, ...]:
    """The levels to compare: those of the baseline, or the lowest and where it is saturated.

    Those that are marked are left out where there are others.
    """
    if known is not None:
        return tuple(sorted(known.cells))
    trusted = [level.concurrency for level in load.levels if not level.marks]
    swept = trusted or [level.concurrency for level in load.levels]
    saturated = load.analysis.saturated_from
    return tuple(sorted({swept[0], saturated if saturated in swept else swept[-1]}))
