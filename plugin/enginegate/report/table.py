"""Results to rows. All formatting of numbers happens here, once; renderers receive strings."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from enginegate.config import Deployment
from enginegate.report.numbers import NOTHING, milliseconds
from enginegate.report.page import Row, Table
from enginegate.report.wording.accuracy import accuracy_lines, embedding_notes
from enginegate.report.wording.layers import (
    blame_table,
    configuration_table,
    repair_lines,
    repair_table,
)
from enginegate.report.wording.sweeps import analysis_lines, level_line, marked_lines
from enginegate.report.wording.tokens import size_line, token_facts, tokens_line
from enginegate.results import Result
from enginegate.serving import Capacity, Load, OpenLevel
from enginegate.speed import TOO_NOISY, Speed, describe, is_noise
from enginegate.variants import Precision, Variant
from enginegate.verdicts import Judgement, Verdict

HEADER = (
    "requested",
    "executed",
    "max |delta|",
    "min cosine",
    "recall@10",
    "p50 ms",
    "p99 ms",
    "texts/s",
    "speedup",
    "change",
    "detectable",
    "embeddings",
    "speed",
)
BRIEF = ("requested", "executed", "min cosine", "p50 ms", "texts/s", "speedup", "change")
NARROW = ("requested", "executed", "min cosine", "change")
NARROW_NEW = ("requested", "executed", "min cosine", "speedup")  # where nothing is compared
_TOLD = 0.02  # a smaller share of the time is not told


@dataclass(frozen=True)
class ModelTable:
    """The table of one model: what its figures go with, a row per variant, and explanations.

    `layers` are the tables of --gate-blame and --gate-repair, `tokens` is what became of its texts.
    """

    title: str
    facts: tuple[str, ...]
    results: tuple[Result, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    layers: tuple[Table, ...] = ()
    tokens: str = ""

    def caption(self, what: str) -> str:
        """What its rows show, and of which texts."""
        return f"{self.title}: {what}" + (f"; {self.tokens}" if self.tokens else "")


def sections(results: Iterable[Result]) -> Iterator[ModelTable]:
    """One section per model, in order of appearance."""
    for model, group in groupby(results, key=lambda result: result.variant.model):
        members = list(group)
        yield ModelTable(
            title=model,
            facts=_facts(members[0]),
            results=tuple(members),
            rows=tuple(_row(result) for result in members),
            notes=tuple(merged(note for result in members for note in _notes(result))),
            layers=tuple(table for result in members for table in _layer_tables(result)),
            tokens=tokens_line(members[0].context),
        )


def _layer_tables(result: Result) -> Iterator[Table]:
    asked = engine_name(result.variant)
    if result.blame:
        yield blame_table(asked, result.blame)
    if result.repair:
        yield repair_table(asked, result.repair)
        if result.repair.configuration:
            yield configuration_table(asked, result.repair)


def _facts(result: Result) -> tuple[str, ...]:
    context = result.context
    workload = f"{context.workload}, {size_line(context)}"
    return (
        f"weights: {context.weights}",
        f"tokenizer: {context.tokenizer}",
        f"workload: {workload} ({context.workload_sha256[:8]})",
        f"reference: {context.reference}",
        f"threads: {context.threads}",
        *((result.truth.beside(context.overruled),) if result.truth else ()),
        *(f"{name}: {said}" for name, said in token_facts(context)),
    )


def _row(result: Result) -> Row:
    deltas = result.accuracy.deltas if result.accuracy else None
    asked = result.variant.precision
    return (
        engine_name(result.variant),
        result.ran if asked != Precision.BEST else f"{result.ran} ({result.chosen})",
        f"{deltas.max_abs:.1e}" if deltas else NOTHING,
        f"{deltas.cosine_worst:.6f}" if deltas else NOTHING,
        _recall(result),
        *(_loaded(result.load) if result.load else _timed(result)),
        speedup(result),
        worst_change(result),
        _detectable(result),
        str(result.embedding_verdict),
        str(result.speed_verdict),
    )


def speedup(result: Result) -> str:
    """The speed at the largest batch size relative to the control, where it ran beside that.

    With how far it is known, `1.60 ±3%`; as it is where that is not known.
    """
    _, last = _ends(result)
    if last is None or result.context.against:
        return NOTHING
    low, ratio, high = last.speedup
    if not low or math.isinf(high):
        return f"{last.yardstick_ratio:.2f}"
    off = max(high / ratio, ratio / low) - 1
    return f"{last.yardstick_ratio:.2f} ±{math.ceil(100 * off)}%" if off < 1 else "too noisy"


def brief_columns(results: Iterable[Result], *, narrow: bool) -> Row:
    """The columns of a terminal's table."""
    compared = any(speed.change for result in results for speed in result.speeds)
    return BRIEF if not narrow else NARROW if compared else NARROW_NEW


def titled_columns(results: Iterable[Result], names: Row) -> Row:
    """The names of columns as they are for what these engines of one model give."""
    words = next(iter(results)).context.words
    own = {"texts/s": f"{words.row}s/s", "embeddings": words.outputs}
    return tuple(own.get(name, name) for name in names)


def columns_of(row: Row, names: Row) -> Row:
    """The cells of these columns of a row that has all of HEADER; of noise, reasons say more."""
    cells = dict(zip(HEADER, row, strict=True))
    cells["change"] = cells["change"].replace(TOO_NOISY, TOO_NOISY.partition(" (")[0])
    return tuple(cells[name] for name in names)


def engine_name(variant: Variant) -> str:
    """The precision that was asked for, and whether it is served."""
    return f"{variant.precision} served" if variant.served else str(variant.precision)


def _recall(result: Result) -> str:
    """The share of the ten nearest texts that is kept."""
    retrieval = result.accuracy.retrieval if result.accuracy else None
    return f"{retrieval.recall_at_10.value:.3f}" if retrieval else NOTHING


def _timed(result: Result) -> tuple[str, str, str]:
    first, last = _ends(result)
    return (
        milliseconds(first.p50_s) if first else NOTHING,
        milliseconds(first.p99_s[1] if first.p99_s else None) if first else NOTHING,
        f"{last.texts_per_s:.0f}" if last else NOTHING,
    )


def _loaded(load: Load) -> tuple[str, str, str]:
    """Latencies at the lowest level, and the largest throughput."""
    latency = load.levels[0].latency
    p50, p99 = milliseconds(latency.p50_s), milliseconds(latency.p99_s)
    return p50, p99, f"{load.largest_per_s:.0f}"


def described(deployment: Deployment) -> str:
    """A deployment in words: `max batch 32, preferred 16, delay 10000 us, instances 1, ...`."""
    preferred = ", ".join(map(str, deployment.preferred_batch_sizes))
    parts = [f"max batch {deployment.max_batch_size}"]
    parts += [f"preferred {preferred}"] if preferred else []
    parts += [f"delay {deployment.max_queue_delay_us} us", f"instances {deployment.instances}"]
    return ", ".join([*parts, f"threads {deployment.threads}"])


def _ends(result: Result) -> tuple[Speed | None, Speed | None]:
    """Speed at the smallest batch (latency) and at the largest (throughput)."""
    ordered = sorted(result.speeds, key=lambda speed: speed.batch)
    return (ordered[0], ordered[-1]) if ordered else (None, None)


def worst_change(*results: Result) -> str:
    """The change that is slowest over the batch sizes, of those that tell anything."""
    changes = [s.change for result in results for s in result.speeds if s.change]
    telling = [change for change in changes if not is_noise(change)]
    worst = max(telling or changes, key=lambda change: change.ratio, default=None)
    return describe(worst) if worst else NOTHING


def _detectable(result: Result) -> str:
    """The smallest slowdown that would have been found at every batch size, if under 100 %."""
    changes = [speed.change for speed in result.speeds if speed.change]
    visible = max((change.visible for change in changes), default=math.inf)
    if not changes:
        return NOTHING
    return f"{visible:.1%}" if visible < 1 else "nothing < 100%"


def merged(notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """`(precision, text)` to lines; what is said of several precisions is said once."""
    said: dict[str, list[str]] = {}
    for name, text in notes:
        said.setdefault(text, []).append(name)
    return (f"{', '.join(names)}: {text}" for text, names in said.items())


def _notes(result: Result) -> Iterator[tuple[str, str]]:
    name = engine_name(result.variant)
    yield from ((name, f"flagged: {flag}") for flag in result.flags)
    yield from ((name, flag) for flag in result.accepted)
    if result.dominated:
        yield name, f"not worth shipping: {result.dominated}"
    if result.accuracy:
        words = result.context.words
        yield from ((name, text) for text in embedding_notes(result.accuracy, words))
    yield from ((name, note) for note in (*result.notes, *_time_notes(result)))
    if result.repair:
        yield from ((name, line) for line in repair_lines(result.repair))
    if result.context.against:
        yield name, f"measured beside {result.context.against}"
    elif result.context.control and result.speeds:
        yield name, f"the speedup is over {result.context.control}"
    if result.identical:
        yield name, f"identical: {result.identical}; not timed"
    yield from ((name, text) for text in _speed_notes(result))
    if result.load:
        yield from ((name, text) for text in _load_notes(result.load))


def _time_notes(result: Result) -> Iterator[str]:
    """Time by the type it was spent in, where that is not one type alone."""
    shares = {kind: share for kind, share in (result.time_share or {}).items() if share >= _TOLD}
    if len(shares) > 1:
        yield "time by type: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())


def _speed_notes(result: Result) -> Iterator[str]:
    """One line for all batch sizes of which the same is said."""
    said = [(judgement, speed.batch) for speed in result.speeds for judgement in _judgements(speed)]
    for judgement in dict.fromkeys(judgement for judgement, _ in said):
        if judgement.reasons:
            batches = ", ".join(str(batch) for other, batch in said if other == judgement)
            where = f"{result.cell} {batches}"
            yield f"{where}: {judgement.verdict}: {'; '.join(judgement.reasons)}"
    if disturbed := [cause for speed in result.speeds for cause in speed.disturbed]:
        blocks = sum(speed.blocks for speed in result.speeds)
        causes = ", ".join(sorted({word for cause in disturbed for word in cause.split(", ")}))
        yield f"{len(disturbed)} of {blocks} blocks disturbed: {causes}"


def _load_notes(load: Load) -> Iterator[str]:
    """Notes on how it was loaded, what came of it, and which levels are not to be trusted."""
    yield f"load by {load.driver} on {load.server}: {described(load.deployment)}"
    if load.judgement.reasons:
        yield f"load: {load.judgement.verdict}: {'; '.join(load.judgement.reasons)}"
    yield from analysis_lines(load.analysis, load.levels)
    yield from (_open_line(level) for level in load.open_levels)
    if load.capacity:
        yield _capacity_line(load.capacity)
    yield from marked_lines(load.levels)


def _open_line(level: OpenLevel) -> str:
    scheduled, sent = (milliseconds(x.p99_s) for x in (level.latency, level.latency_from_send))
    marks = "".join(f"; {mark}" for mark in level.marks)
    return (
        f"open loop, {level.arrivals} {level.rate_per_s:g} requests/s: p99 {scheduled} ms from the "
        f"scheduled time, {sent} ms from the send{marks}"
    )


def _capacity_line(capacity: Capacity) -> str:
    above = f", {capacity.high_per_s:.0f} do not" if capacity.high_per_s else ""
    held = f"{capacity.low_per_s:.0f} infer/sec hold{above} ({capacity.end})"
    return f"capacity for {capacity.slo}: {held}"


def _judgements(speed: Speed) -> Iterator[Judgement]:
    """That of the median, and that of the p99 where it says more."""
    yield speed.judgement
    tail = speed.tail_judgement
    if tail and (tail.verdict is Verdict.REGRESSED or len(tail.reasons) > 1):
        yield Judgement(tail.verdict, tuple(f"p99 {reason}" for reason in tail.reasons))


def accuracy_details(result: Result) -> Iterator[str]:
    """Details of the embeddings, for the written report."""
    name = f"{result.variant.model} {engine_name(result.variant)}"
    if result.accuracy:
        words = result.context.words
        yield from (f"{name}: {line}" for line in accuracy_lines(result.accuracy, words))


def latency_lines(result: Result) -> Iterator[str]:
    """A line per batch size, for the written report."""
    if result.load:
        yield f"{result.variant.model} {engine_name(result.variant)}, {result.load.server}:"
        yield from map(level_line, result.load.levels)
    for speed in sorted(result.speeds, key=lambda speed: speed.batch):
        tail = speed.tail_judgement.verdict if speed.tail_judgement else Verdict.NOT_MEASURED
        p99 = " … ".join(map(milliseconds, speed.p99_s)) if speed.p99_s else NOTHING
        beside = result.context.timed_beside.removeprefix("the ")
        where = f"{result.variant.model} {engine_name(result.variant)} {result.cell} {speed.batch}"
        yield (
            f"{where}: p50 {milliseconds(speed.p50_s)} ms, "
            f"p99 {p99} ms, {speed.texts_per_s:.0f} {result.context.words.row}s/s, "
            f"{speed.yardstick_ratio:.2f} x {beside}, {speed.verdict}, p99 {tail}"
        )
    yield from gpu_lines(result)


def gpu_lines(result: Result) -> Iterator[str]:
    """The parts of a call's time on a GPU, by batch size, for the written report."""
    if result.gpu is None:
        return
    yield f"{result.variant.model} {engine_name(result.variant)}, GPU: {result.gpu.mode}"
    for batch, phases in sorted(result.gpu.phases.items()):
        parts = {
            "host to device": phases.h2d_s,
            "compute": phases.compute_s,
            "device to host": phases.d2h_s,
            "enqueue": phases.enqueue_s,
        }
        said = ", ".join(f"{name} {milliseconds(seconds)} ms" for name, seconds in parts.items())
        bound = "; bound by enqueue: the GPU waits for the host" if phases.waits_for_host else ""
        yield f"  batch {batch}: {said}{bound}"


def interrupted_line(by: str) -> str:
    """The warning of a run that was stopped, and by what."""
    return f"INTERRUPTED ({by}): this is what was known by then, and nothing may ship by it"


def spent_line(measured_s: float, other_s: float) -> str:
    """The parts of the run's time."""
    measured = f"{measured_s:.0f} s measuring, the replicates' loading included"
    return f"time: {measured}; {other_s:.0f} s outside measurement"
