"""Roughly how long a run will take, from its plan alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginegate.config import Options
from enginegate.session.brief import BRIEF_S, wants_long
from enginegate.speed import FEWEST_REPLICATES
from enginegate.variants import Precision, Variant

if TYPE_CHECKING:
    from enginegate.session import Session

# Seconds on two cores, of the shipped models: measured between MiniLM, the smaller, and DistilBERT.
_MODEL_S, EXPORT_S = 5.0, 50
_ENGINE_S, _BUILD_S, _QUANTIZE_S, _TRIALS_S = 12.0, 3.0, 40.0, 25.0
_LOADING_S = 2.0  # of a replicate: three arms loaded, and warmed at every batch size
_SERVER_S, _LEVEL_S = 20.0, 8.0


@dataclass(frozen=True)
class Plan:
    """What a run is about to do.

    Attributes:
        variants: to be judged.
        timed: batch sizes to be timed, of each variant of which some are.
        replicates: of a batch size.
        cell_s: seconds of each batch size in a replicate.
        built: models and engines are in the cache, as far as can be told.
        more_s: seconds that changes which are hard to tell may take besides.
    """

    variants: Collection[Variant]
    timed: Collection[Sequence[int]]
    replicates: int
    cell_s: float
    built: bool
    more_s: float = 0.0


def plan_of(session: "Session", variants: Sequence[Variant]) -> Plan:
    """The plan of a run for these variants, the batch sizes of its tests noted before."""
    options, planned = session.options, session.recorder.planned
    known = bool(session.comparisons.baselines.models())
    compared = known or bool(options.beside)
    short = not (compared or wants_long(options))
    timed = [planned[variant] for variant in variants if variant in planned]
    return Plan(
        variants,
        timed,
        FEWEST_REPLICATES if short else options.replicates,
        BRIEF_S if short else options.measure_s / options.replicates,
        session.prepare.store.has_any("engine"),
        options.max_time_s * len(timed) if compared else 0.0,
    )


def announced(plan: Plan, options: Options) -> str:
    """`about 4 min: 2 models x 2 precisions`, and how long at most where something is compared."""
    models = len({variant.model for variant in plan.variants})
    precisions = len({variant.precision for variant in plan.variants})
    parts = (_counted(models, "model"), _counted(precisions, "precision"))
    usual_s = estimate_s(plan, options)
    most = f", up to {duration(usual_s + plan.more_s)} if a change is hard to tell"
    return f"about {duration(usual_s)}{most if plan.more_s else ''}: {' x '.join(parts)}"


def estimate_s(plan: Plan, options: Options) -> float:
    """Seconds of the whole run; changes that are hard to tell come on top."""
    models = len({variant.model for variant in plan.variants})
    each_s = [_LOADING_S + plan.cell_s * len(batches) for batches in plan.timed]
    once_s = models * (_MODEL_S if plan.built else EXPORT_S)
    built_s = sum(_prepared_s(variant, built=plan.built) for variant in plan.variants)
    return once_s + built_s + plan.replicates * sum(each_s) + _served_s(plan, options)


def variant_s(variant: Variant, options: Options) -> int:
    """Whole seconds of one variant where nothing is in the cache, its model's export apart.

    From what was asked alone, so it is the same on every machine.
    """
    timed_s = options.replicates * _LOADING_S + options.measure_s * len(options.batches)
    served_s = _served_s(Plan((variant,), (), 0, 0.0, built=False), options)
    return round(_prepared_s(variant, built=False) + timed_s + served_s)


def _prepared_s(variant: Variant, *, built: bool) -> float:
    """Seconds to build, load, compare and profile an engine."""
    if built:
        return _ENGINE_S
    longer = {Precision.INT8: _QUANTIZE_S, Precision.BEST: _TRIALS_S}
    return _ENGINE_S + longer.get(variant.precision, _BUILD_S)


def _served_s(plan: Plan, options: Options) -> float:
    if options.serve is None:
        return 0.0
    return len(plan.variants) * (_SERVER_S + _LEVEL_S * len(options.serve.concurrencies))


def duration(seconds: float) -> str:
    """`40 s`, `4 min`: no more than is known."""
    if seconds < 90:  # noqa: PLR2004
        return f"{max(10, 10 * round(seconds / 10))} s"
    return f"{round(seconds / 60)} min"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
