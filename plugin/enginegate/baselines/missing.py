"""No silent green: what had a baseline and was not judged against it in this run."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from enginegate.accuracy import AgainstTruth
from enginegate.baselines.store import Baseline, Baselines
from enginegate.results import NOW_UNJUDGED, Result
from enginegate.serving import StoredLoad
from enginegate.variants import SERVED, Precision, precision_of


def unjudged(
    baselines: Baselines,
    results: Iterable[Result],
    models: Collection[str],
    left_out: Collection[str],
    precisions: Collection[Precision],
    elsewhere: Collection[tuple[str, str]] = (),
    *,
    served: bool,
) -> Iterator[str]:
    """Name what is stored on this machine for what was asked, and was not judged.

    Of the models with a file, those not `left_out` are expected, and in any case those of `models`
    and those judged: a model that nothing defines any more was renamed. `elsewhere` are model and
    precision of what another run judges. Raises BaselineError.
    """
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(result.variant.model, []).append(result)
    for model in baselines.models():
        if model in left_out and model not in models and model not in by_model:
            continue
        judged = {result.variant.key: result for result in by_model.get(model, [])}
        for key, baseline in baselines.load(model).items():
            precision = precision_of(key)
            asked = precision in precisions and (model, precision) not in elsewhere
            if asked and (served or not key.endswith(SERVED)):
                name = f"{model}-{key}"
                yield from (f"{name}: {why}" for why in _faults(key, baseline, judged))


def lost_truth(baseline: Baseline, truth: AgainstTruth | None, whose: str = "its") -> str:
    """Say that a truth judged the reference of the baseline and none judges this run's; else empty.

    `truth` is None where nothing is known of the reference; `whose` the baseline is, in words.
    """
    if not baseline.truth or (truth is not None and truth.by):
        return ""
    return f"{baseline.truth} judged the reference of {whose} baseline, {NOW_UNJUDGED}"


def _faults(key: str, baseline: Baseline, judged: dict[str, Result]) -> Iterator[str]:
    result = judged.get(key)
    if result is None:
        others = [other for other in judged if _alike(other, key)]
        instead = f"; {', '.join(others)} was judged instead" if others else ""
        yield f"it has a baseline, and no result{instead}"
        return
    if _shares(result.executed) != _shares(baseline.executed):
        was, now = (_words(types) for types in (baseline.executed, result.executed))
        yield f"it ran as {now}, its baseline as {was}"
    yield from filter(None, [lost_truth(baseline, result.truth)])
    missing = sorted(set(baseline.cells) - {speed.batch for speed in result.speeds})
    if missing and not result.identical:
        yield f"{result.cell} {', '.join(map(str, missing))} has a baseline and was not timed"
    yield from _lost_load(baseline.load, result)
    throttled = sum("throttled" in cause for s in result.speeds for cause in s.disturbed)
    if throttled:
        yield f"the container's CPU quota stopped it in {throttled} blocks"


def _lost_load(stored: StoredLoad | None, result: Result) -> Iterator[str]:
    """Levels and a capacity that the baseline of a served engine has, and this run has not."""
    if stored is None:
        return
    swept = {level.concurrency for level in result.load.levels} if result.load else set()
    if missing := sorted(set(stored.levels) - swept):
        yield f"concurrency {', '.join(map(str, missing))} was swept for its baseline, not now"
    sought = str(result.load.capacity.slo) if result.load and result.load.capacity else ""
    if stored.slo and sought != stored.slo:
        yield f"its baseline has a capacity for {stored.slo}, which was not sought now"


def _alike(one: str, other: str) -> bool:
    """Tell if both keys name the same precision, both served or both not."""
    same = precision_of(one) == precision_of(other)
    return same and one.endswith(SERVED) == other.endswith(SERVED)


def _shares(types: Mapping[str, int]) -> dict[str, float]:
    """A changed model has more or fewer multiplications; only their types matter here."""
    total = sum(types.values())
    return {name: round(count / total, 3) for name, count in types.items()}


def _words(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
