"""The comparison of a variant: with a stored baseline, or the engine it is measured beside."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from enginegate.accuracy import AgainstTruth, Deltas
from enginegate.baselines import Baseline, Baselines, lost_truth
from enginegate.config import Options
from enginegate.engines import Built, registration
from enginegate.errors import BaselineError, EngineError, OptionError
from enginegate.files import sha256_of_json
from enginegate.models import Exported
from enginegate.results import Provenance, Result
from enginegate.serving import Load
from enginegate.session.preparation import Preparation
from enginegate.speed import METRICS, Compared, Comparison, anchor_of, paired
from enginegate.variants import Variant
from enginegate.verdicts import GateLevel, Judgement, Refresh, Verdict

_LIBRARIES = frozenset({"runtime", "versions"})  # of a recipe
_DEMANDED = ("demand", "calibration")  # of a recipe: what an engine was built for, and by
_SAME = ("workload_sha256", "seq_len", "threads")  # of the context of an identical engine
_ROUNDING = 1e-5  # of a cosine, and of the largest component
_MORE = 1.5
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")


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

    def control(self, built: Built, model: Exported) -> tuple[Built | None, str]:
        """The engine to measure beside, None for the reference; and the way there in words.

        The words are empty where the user named it.
        """
        if self.options.calibrate or self.options.beside:
            return self.named_control(built, model), ""
        if self._as_stored or not built.recipe:
            return None, ""
        variant = named(built.variant, model, served=False)
        for baseline in self.baselines.everywhere(variant.model, variant.key):
            if baseline.provenance:
                return self._engine_of(baseline, baseline.provenance, built, variant)
        return None, ""

    def named_control(self, built: Built, model: Exported) -> Built | None:
        """The engine that the user named to measure beside; None for none."""
        if self.options.calibrate:
            return built
        variant = named(built.variant, model, served=False)
        return self.prepare.baseline_engine(variant) if self.options.beside else None

    @property
    def _as_stored(self) -> bool:
        """This run measures as baselines are stored: beside the reference."""
        return self.options.refresh is not Refresh.NONE or self.options.gate is GateLevel.OFF

    def _engine_of(
        self, baseline: Baseline, made: Provenance, built: Built, variant: Variant
    ) -> tuple[Built | None, str]:
        """The engine of a baseline: from the cache, else built from its revision."""
        whose = f"the baseline's engine of {baseline.date}"
        changed = recipe_changes(made.recipe, built.recipe)
        if changed and all(name in _LIBRARIES for name in changed):
            return None, f"only libraries changed: {', '.join(changed.values())}"
        if not _LIBRARIES & changed.keys() and (found := self.prepare.cached_engine(variant, made)):
            return found, f"{whose}, from the cache"
        if not made.revision or made.revision.endswith("-dirty"):
            return None, f"{whose} is not in the cache, and was built from files outside git"
        try:
            found = self.prepare.engine_at(made.revision, variant)
        except (OptionError, EngineError) as error:
            reason = str(error).partition("\n")[0]
            return None, f"{whose} is not in the cache, and cannot be built again: {reason}"
        other = recipe_changes(made.recipe, found.recipe) if found else {"": "no such engine"}
        if other.keys() - _LIBRARIES:
            said = ", ".join(other.values())
            return None, f"revision {made.revision[:12]} does not give {whose}: {said}"
        today = f" with {', '.join(other.values())}" if other else ""
        return found, f"{whose}, built from {made.revision[:12]}{today}"

    def identical(self, result: Result) -> Judgement | None:
        """The verdict on a variant whose baseline is of this very engine; None for any other.

        The recipes agree, so no other engine could have been built; what it runs in, how it is
        measured and how far its embeddings are off are looked at besides.
        """
        options, made = self.options, result.provenance
        measured = options.beside or options.calibrate or options.measure_identical
        if measured or self._as_stored or not made or not made.recipe:
            return None
        for baseline in self.baselines.everywhere(result.variant.model, result.variant.key):
            if baseline.provenance and _is_it(baseline, baseline.provenance, result, made):
                here = baseline.machine == self.baselines.machine.id
                where = "" if here else f" of machine {baseline.machine}"
                said = (
                    f"same model, settings and libraries as the baseline of {baseline.date}{where}"
                )
                return Judgement(Verdict.IDENTICAL, (said,))
        return None

    def lost_truth(self, variant: Variant, truth: AgainstTruth | None) -> str:
        """What judged the reference of the variant's baseline and judges it no more; or empty.

        The baseline of this machine is asked, or where it has none that of another; of a variant
        without one, those of the model's other variants, as they have the same reference.
        """
        model = variant.model
        with contextlib.suppress(BaselineError):  # whoever compares with it is told
            own = [("its", found) for found in self.baselines.everywhere(model, variant.key)]
            others = ((f"{model}-{k}'s", found) for k, found in self.baselines.with_truth(model))
            for whose, baseline in own or others:
                return lost_truth(baseline, truth, whose)
        return ""

    def of(self, result: Result, batches: Sequence[int], compared: Compared | None) -> Comparison:
        """Find what to compare a variant with, or the reason why there is nothing."""
        found = compared is not None and bool(compared.control and compared.way)
        beside = self.options.beside or self.options.calibrate or found
        if beside and self.options.gate is not GateLevel.OFF:
            return self._paired(batches, compared)
        baseline, missing = self.baseline_of(result)
        if baseline is None:
            return Comparison({}, {}, missing)
        return _stored(baseline, batches, list(self.baselines.all_here()))

    def _paired(self, batches: Sequence[int], compared: Compared | None) -> Comparison:
        if compared and compared.control:
            return paired(batches)
        lacking = f"{self.options.beside} has no engine of it"
        unknown = "the `rig` fixture does not say what it measures beside (Rig.compared)"
        if compared:
            return Comparison({}, {}, Judgement(Verdict.NO_BASELINE, (lacking,)))
        return Comparison({}, {}, Judgement(Verdict.INCOMPARABLE, (unknown,)))

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
        """Say why a run like this compares with no stored baseline; None if it does."""
        if self.options.gate is GateLevel.OFF:
            return Judgement(Verdict.INCOMPARABLE, ("not compared: --gate-level off",))
        if self.options.beside or self.options.calibrate:
            said = "cliffs and capacity are compared with stored baselines only"
            return Judgement(Verdict.NOT_MEASURED, (said,))
        if result.variant.served and self.options.serve and self.options.serve.endpoint:
            said = "a server that ran already is not compared"
            return Judgement(Verdict.INCOMPARABLE, (said,))
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


def recipe_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Changes between two recipes, by key, in words."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return {key: _change(key, then.get(key), now.get(key)) for key in keys}


def built_otherwise(control: Built, built: Built) -> Iterator[str]:
    """A line if an engine to measure beside has other batches or calibration texts.

    On a GPU also for another runtime or driver, which a plan may have been built by.
    """
    keys = (*_DEMANDED, "runtime") if registration(built.backend).gpu else _DEMANDED
    then, now = ({k: b.entry.key.get(k) for k in keys} for b in (control, built))
    if other := ", ".join(recipe_changes(then, now).values()):
        yield f"{built.variant.id}: measured beside an engine that was built otherwise: {other}"


def _change(key: str, then: Any, now: Any) -> str:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return ", ".join(recipe_changes(then, now).values())
    shown = ("none" if value is None else _HASH.sub(r"\1", str(value)) for value in (then, now))
    return "{} {} -> {}".format(key, *shown)


def _is_it(baseline: Baseline, then: Provenance, result: Result, now: Provenance) -> bool:
    alike = all(baseline.context.get(n) == getattr(result.context, n) for n in _SAME)
    deltas = result.accuracy.deltas if result.accuracy else None
    near = deltas is not None and not drift(baseline.deltas, deltas)
    same_types = dict(baseline.executed) == dict(result.executed)
    return bool(then.recipe == now.recipe and alike and same_types and near)


def drift(then: Mapping[str, float], now: Deltas) -> str:
    """Say how embeddings are farther off than those of the baseline; empty if they are not.

    Kernels of another machine round otherwise, so a half more is allowed, and what fp32 leaves.
    """
    if not then:
        return "the baseline does not say how far its embeddings were off"
    was, is_now = 1 - then["cosine_worst"], 1 - now.cosine_worst
    if is_now > _ROUNDING + _MORE * was:
        return f"worst cosine {then['cosine_worst']:.6f} -> {now.cosine_worst:.6f}"
    if now.max_abs_relative > _ROUNDING + _MORE * then["max_abs"] / then["scale"]:
        return f"largest difference {then['max_abs']:.1e} -> {now.max_abs:.1e}"
    return ""


def measured_beside(result: Result, found: Compared | None) -> Result:
    """The record with what it was timed beside, or why not beside its baseline's engine."""
    if found is None or not found.way:
        return result
    if found.control:
        return replace(result, context=replace(result.context, against=found.way))
    return replace(result, notes=(*result.notes, found.way))


def _stored(baseline: Baseline, batches: Sequence[int], machine: Sequence[Baseline]) -> Comparison:
    """The sessions of a stored baseline; how much sessions differ, all of the machine tell."""
    known = [batch for batch in batches if batch in baseline.cells]
    ratios = {(b, metric): baseline.log_ratios(b, metric) for b in known for metric in METRICS}
    alike = [b for b in machine if (b.load is None) == (baseline.load is None)]
    others = {
        metric: [b.log_ratios(batch, metric) for b in alike for batch in b.cells]
        for metric in METRICS
    }
    anchors = {
        key: anchor_of(found, [cell for cell in others[key[1]] if cell != found])
        for key, found in ratios.items()
        if found
    }
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
