"""What a run writes into the baselines, and what it offers for acceptance."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginegate.baselines.store import Baseline, Baselines, Update
from enginegate.config import Options
from enginegate.results import Result
from enginegate.speed import describe
from enginegate.verdicts import Refresh, Verdict

ACCEPT = Path(".enginegate", "accept")
_CHANGED = (Verdict.IMPROVED, Verdict.REGRESSED)


def refresh_baselines(
    baselines: Baselines, results: Sequence[Result], options: Options, *, interrupted: bool
) -> Iterator[str]:
    """Write what may become a baseline; say old to new, or why not."""
    if interrupted:
        yield "baselines: the run was interrupted, none was written"
        return
    for model in dict.fromkeys(result.variant.model for result in results):
        old = baselines.load(model)
        members = [result for result in results if result.variant.model == model]
        kept = {r.variant.key: _why_kept(r, old.get(r.variant.key), options) for r in members}
        updates = [
            Update(r, replace=_replaces(r, old.get(r.variant.key)))
            for r in members
            if not kept[r.variant.key]
        ]
        if updates and not options.dry_run:
            yield f"baselines: wrote {os.path.relpath(baselines.save(model, updates))}"
        for result in members:
            key = result.variant.key
            yield _line(result, old.get(key), kept[key])


def _why_kept(result: Result, before: Baseline | None, options: Options) -> str:
    """The reason why a variant must not be written; empty if it may."""
    measured = {speed.batch for speed in result.speeds}
    if not result.embeddings_passed:
        return f"embeddings: {result.embedding_verdict}"
    needed = set() if result.variant.served else set(options.batches)
    if not measured or not measured >= needed:
        return f"only {result.cell} {sorted(measured)} was measured"
    if before is not None and options.refresh is Refresh.MISSING:
        return "it is there"
    if result.speed_verdict is Verdict.INVALID:
        return "the measurement is invalid"
    if result.speed_verdict is Verdict.REGRESSED and not options.accept_regressions:
        return "it regressed; --accept-regressions writes it all the same"
    return ""


def _replaces(result: Result, before: Baseline | None) -> bool:
    """A change, or figures that cannot be compared, make a new baseline; else a session more."""
    changed = any(speed.verdict in _CHANGED for speed in result.speeds)
    return before is None or changed or bool(before.difference(result.context))


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
    action = "replaced" if _replaces(result, before) else "one session more"
    return f"baselines: {before.date} -> now  {name}: {changes or 'not comparable'}; {action}"


def offer(
    baselines: Baselines, results: Sequence[Result], options: Options, *, interrupted: bool
) -> Iterator[str]:
    """Write the file that would accept a regressed variant beside the baselines."""
    place = options.rootpath / ACCEPT
    shutil.rmtree(place, ignore_errors=True)
    regressed = [r for r in results if r.speed_verdict is Verdict.REGRESSED and r.speeds]
    worse = [result for result in regressed if result.embeddings_passed]
    if options.beside or interrupted or not worse:
        return
    for model in dict.fromkeys(result.variant.model for result in worse):
        updates = [Update(r, replace=True) for r in worse if r.variant.model == model]
        baselines.save(model, updates, place)
    shown = (os.path.relpath(path) for path in (place, baselines.root))
    yield "to accept: cp -r {}/. {} and commit it".format(*shown)
