"""What a run writes into the baselines, and what it offers for acceptance."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from enginegate.baselines.store import Baseline, Baselines, Update
from enginegate.results import Result
from enginegate.speed import Speed, describe
from enginegate.verdicts import Refresh, Verdict

Speeds = Mapping[str, Sequence[Speed]]
_CHANGED = (Verdict.IMPROVED, Verdict.REGRESSED)


def refresh_baselines(
    baselines: Baselines,
    results: Sequence[Result],
    needed: Collection[int],
    which: Refresh,
    again: Callable[[Sequence[Result]], Sequence[Speeds]],
    *,
    regressed: bool,
    dry_run: bool,
) -> Iterator[str]:
    """Write what may become a baseline; say old to new, or why not.

    `needed` are the batch sizes that a baseline must have; `regressed` lets one regress. `again`
    measures further sessions of what is to be written.
    """
    models = dict.fromkeys(result.variant.model for result in results)
    before = {model: baselines.load(model) for model in models}

    def kept(result: Result) -> str:
        there = before[result.variant.model].keys() if which is Refresh.MISSING else ()
        return _why_kept(result, needed, there, regressed=regressed)

    written = [] if dry_run else [result for result in results if not kept(result)]
    sessions = again(written)
    for model, old in before.items():
        updates = [
            Update(
                r,
                replace=_replaces(r, old.get(r.variant.key)),
                further=[s for found in sessions for s in found.get(r.variant.id, ())],
            )
            for r in written
            if r.variant.model == model
        ]
        if updates:
            yield f"baselines: wrote {os.path.relpath(baselines.save(model, updates))}"
        for result in (r for r in results if r.variant.model == model):
            yield _line(result, old.get(result.variant.key), kept(result))


def _why_kept(
    result: Result, needed: Collection[int], there: Collection[str], *, regressed: bool
) -> str:
    """The reason why a variant must not be written; empty if it may."""
    measured = {speed.batch for speed in result.speeds}
    if not result.embeddings_passed:
        return f"embeddings: {result.embedding_verdict}"
    if not measured or not (result.variant.served or measured >= set(needed)):
        return f"only {result.cell} {sorted(measured)} was measured"
    if result.variant.key in there:
        return "it is there"
    if result.speed_verdict is Verdict.INVALID:
        return "the measurement is invalid"
    if result.speed_verdict is Verdict.REGRESSED and not regressed:
        return "it regressed; --gate-accept-regressions writes it all the same"
    return ""


def _replaces(result: Result, before: Baseline | None) -> bool:
    """A change, or figures that cannot be compared, make a new baseline; else a session more."""
    changed = any(speed.verdict in _CHANGED for speed in result.speeds)
    unlike = before is None or before.difference(result.context)
    return changed or bool(unlike) or (before is not None and _is_another(result, before))


def _is_another(result: Result, before: Baseline) -> bool:
    """Tell if it is known to be another engine than the baseline's."""
    now, then = result.provenance, before.provenance
    return bool(now and then and now.recipe and then.recipe and now.recipe != then.recipe)


def _line(result: Result, before: Baseline | None, kept: str) -> str:
    name = result.variant.id
    if kept:
        return f"baselines: kept {name} as it was: {kept}"
    if before is None:
        return f"baselines: new  {name}"
    if difference := before.difference(result.context):
        return f"baselines: {before.date} -> now  {name}: not comparable, {difference}"
    changed = ((speed.batch, speed.change) for speed in result.speeds if speed.change)
    changes = ", ".join(f"{result.cell} {batch} {describe(change)}" for batch, change in changed)
    action = "replaced" if _replaces(result, before) else "added to it"
    return f"baselines: {before.date} -> now  {name}: {changes or 'not comparable'}; {action}"


def offer(baselines: Baselines, results: Sequence[Result], place: Path) -> Iterator[str]:
    """Write the files that would accept regressed variants into a folder, emptied before."""
    shutil.rmtree(place, ignore_errors=True)
    regressed = [r for r in results if r.speed_verdict is Verdict.REGRESSED and r.speeds]
    worse = [result for result in regressed if result.embeddings_passed]
    if not worse:
        return
    for model in dict.fromkeys(result.variant.model for result in worse):
        updates = [Update(r, replace=True) for r in worse if r.variant.model == model]
        baselines.save(model, updates, place)
    shown = (os.path.relpath(path) for path in (place, baselines.root))
    yield "to accept: cp -r {}/. {} and commit it".format(*shown)
