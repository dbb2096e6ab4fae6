"""The proof card: what ran, on what, made of what. Nothing here is a verdict."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from enginegate.report.numbers import NOTHING, shares, size
from enginegate.report.page import Row, Section, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.table import engine_name
from enginegate.report.wording.tokens import prompts_line, size_line, tokens_line
from enginegate.results import Context, Result

_HASH_DIGITS = 12
_EXECUTED = (
    "requested",
    "built",
    "executed by matrix multiplications",
    "share of time",
    "runtime",
    "size",
)


def proof(run: SavedRun) -> Section:
    """Requested and executed precision, origins, hashes, the machine and its state, versions."""
    return Section(
        anchor="proof",
        title="Proof",
        lead=("What every figure on this page goes with, as the run recorded it.",),
        tables=(*_executed(run), _origins(run.results), *_machine(run), _versions(run)),
    )


def _executed(run: SavedRun) -> Iterator[Table]:
    """A table per model; served engines are the same ones, and shown where they are alone."""
    for model, _, found in run.by_model():
        here = [result for result in found if not result.variant.served]
        rows = tuple(_ran(run, result) for result in here or found)
        yield Table(f"{model}: precision requested and executed", _EXECUTED, rows)


def _ran(run: SavedRun, result: Result) -> Row:
    time_share = run.raw(result).get("time_share")
    return (
        engine_name(result.variant),
        result.chosen,
        result.ran,
        shares(time_share) if time_share else NOTHING,
        result.backend,
        size(result.size_bytes),
    )


def _origins(results: Sequence[Result]) -> Table:
    groups = [list(members) for _, members in groupby(results, key=lambda r: r.variant.model)]
    columns = [_context(members[0].context) for members in groups]
    rows = zip(*columns, strict=True)
    header = ("", *(members[0].variant.model for members in groups))
    named = ((row[0][0], *(value for _, value in row)) for row in rows)
    return Table("Where model and texts come from", header, tuple(named))


def _context(context: Context) -> tuple[tuple[str, str], ...]:
    return (
        ("weights", context.weights),
        ("model, SHA-256", context.model_sha256[:_HASH_DIGITS]),
        ("tokenizer", context.tokenizer),
        ("texts", f"{context.workload}, {size_line(context)}"),
        ("cut, padded", tokens_line(context) or NOTHING),
        ("prompts", prompts_line(context) or NOTHING),
        ("tokens, SHA-256", context.workload_sha256[:_HASH_DIGITS]),
        ("reference", context.reference),
        ("threads of each engine", str(context.threads)),
        ("timed by", context.method),
        ("timed beside", context.timed_beside),
    )


def _machine(run: SavedRun) -> Iterator[Table]:
    machine = run.machine
    rows = [
        ("processor", machine.cpu),
        ("processors used", str(machine.cores)),
        ("instruction sets", ", ".join(machine.isa) or NOTHING),
        ("system", machine.system),
        ("folder of its baselines", machine.id),
        *((name, _state(run.whole["condition"].get(key))) for key, name in _CONDITION.items()),
        ("seed of order and placement", str(run.whole["seed"])),
    ]
    yield Table("The machine, and its state at the start", ("", "value"), tuple(rows), folded=True)


_CONDITION = {
    "load_1min": "load, 1 minute",
    "memory_pressure": "memory pressure",
    "frequency_khz": "frequency, kHz",
    "governor": "frequency governor",
    "affinity": "processors allowed",
}


def _state(value: object) -> str:
    if value is None:
        return "unknown"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions(run: SavedRun) -> Table:
    rows = tuple(sorted(run.whole["versions"].items()))
    return Table("Versions", ("library", "version"), rows, folded=True)
