"""The page of a fleet, and its JSON, from what was merged."""

from collections.abc import Iterator

from enginegate.files import readable_json
from enginegate.report.compare import HEADER
from enginegate.report.compose import CHANGED, headline
from enginegate.report.fleet.fleet import Fleet
from enginegate.report.fleet.parts import Part
from enginegate.report.numbers import counted, listed, short
from enginegate.report.page import Decided, Matrix, Page, Row, Section, Table, named
from enginegate.report.saved_run import shown_commit
from enginegate.speed import ALARM
from enginegate.variants import Precision
from enginegate.verdicts import exit_status

FLEET_SCHEMA = 1
_PARTS = ("report", "shard", "machine", "engines", "alarm error", "how it ended")
_PAIRS = ("engine", "machines", "min cosine", "max |delta|", "beyond its limits")


def compose_fleet(fleet: Fleet) -> Page:
    """The page of a fleet: decisions, what is missing, and where embeddings differ."""
    matrix = _matrix(fleet)
    changed = tuple(_changed(fleet))
    plain = list(_plain(fleet))
    gone = f"; {counted(len(fleet.missing), 'part')} missing" if fleet.missing else ""
    return Page(
        title="May these engines ship?",
        headline=f"{headline(matrix)}{gone}",
        subtitle=_subtitle(fleet),
        matrix=matrix,
        sections=tuple(s for s in (_reports(fleet), _machines(fleet), _beside(fleet)) if s),
        origin=tuple(_origin(fleet)),
        warning=_warning(fleet),
        said=tuple(_said(fleet)),
        changed=Table("what changed", CHANGED, changed) if changed else None,
        unchanged=f"As before, and may ship: {named(plain)}." if plain else "",
        source=f"{counted(len(fleet.parts), 'JSON report')} of a fleet",
    )


def _label(fleet: Fleet, part: Part, model: str) -> str:
    return f"{model} on {part.kind}" if len(fleet.kinds) > 1 else model


def _matrix(fleet: Fleet) -> Matrix:
    cells: dict[str, dict[str, Decided]] = {}
    for part, engine, decided in fleet.engines():
        cells.setdefault(_label(fleet, part, engine.model), {})[engine.precision] = decided
    found = {precision for row in cells.values() for precision in row}
    precisions = tuple(str(p) for p in Precision if p in found)
    rows = ((name, tuple(row.get(p) for p in precisions)) for name, row in cells.items())
    return Matrix(precisions, tuple(rows))


def _changed(fleet: Fleet) -> Iterator[Row]:
    for part, engine, decided in fleet.engines():
        if not engine.is_plain or decided != engine.decided:
            name = f"{_label(fleet, part, engine.model)} {engine.precision}"
            yield (name, decided.decision, *engine.figures[2:], decided.reason)


def _plain(fleet: Fleet) -> Iterator[tuple[str, str, Decided]]:
    for part, engine, decided in fleet.engines():
        if engine.is_plain and decided == engine.decided:
            yield _label(fleet, part, engine.model), engine.precision, decided


def _subtitle(fleet: Fleet) -> str:
    models = {engine.model for part in fleet.parts for engine in part.engines}
    reports = counted(len(fleet.parts), "report")
    kinds = counted(len(fleet.kinds), "kind")
    return f"{reports} of {counted(len(models), 'model')} on {kinds} of machines"


def _origin(fleet: Fleet) -> Iterator[tuple[str, str]]:
    dates = sorted(filter(None, (part.origin.get("date") for part in fleet.parts)))
    if dates:
        span = dict.fromkeys(d.replace("T", " ").replace("+00:00", " UTC") for d in dates)
        yield "date", " to ".join([*span][:: max(1, len(span) - 1)])
    if commit := fleet.parts[0].origin.get("commit"):
        changed = any(part.origin["changed"] for part in fleet.parts)
        yield "commit", f"{shown_commit(commit)}{', with changes that are in none' * changed}"
    if base := fleet.parts[0].origin.get("base"):
        yield "measured beside", shown_commit(base)
    yield "exit status", str(fleet.status)


def _warning(fleet: Fleet) -> str:
    stopped = fleet.interrupted
    said = [f"INTERRUPTED: {listed(stopped)}: nothing may ship by these"] if stopped else []
    return "; ".join([*fleet.missing, *said])


def _said(fleet: Fleet) -> Iterator[str]:
    yield from _alarm(fleet)
    yield from fleet.unjudged
    for pair in fleet.apart:
        broken = ", ".join(pair.broken)
        yield f"{pair.model} {pair.precision}: {pair.where} give other embeddings: {broken}"
    yield from dict.fromkeys(said for part in fleet.parts for said in part.said)


def _alarm(fleet: Fleet) -> Iterator[str]:
    said = f"alarm error of the whole fleet: {fleet.alarm:.2%}"
    if fleet.shares_alarm:
        yield said
    else:
        yield (
            f"{said}, more than the {ALARM:.0%} of one run, as its runs did not share it: run them "
            "with --gate-shard K/NxM, for N parts on each of M kinds of machines"
        )


def _reports(fleet: Fleet) -> Section:
    rows = tuple(
        (
            part.file,
            part.name,
            part.machine,
            str(len(part.engines)),
            f"{part.alarm:.3%}",
            _ended(part),
        )
        for part in fleet.parts
    )
    return Section("reports", "Reports", tables=(Table("Reports of this fleet", _PARTS, rows),))


def _ended(part: Part) -> str:
    status = exit_status(part.failures)
    ended = f"interrupted: {part.interrupted}" if part.interrupted else "to its end"
    return f"{ended}, exit status {status}" if status else ended


def _machines(fleet: Fleet) -> Section | None:
    rows = tuple(
        (
            f"{pair.model} {pair.precision}",
            pair.where,
            f"{pair.deltas.cosine_worst:.6f}",
            short(pair.deltas.max_abs),
            ", ".join(pair.broken) or "no",
        )
        for pair in fleet.pairs
    )
    lead = ("The same engine, made by one recipe, on two kinds of machines, for a few texts.",)
    caption = "Embeddings of the second machine beside those of the first"
    tables = (Table(caption, _PAIRS, rows),)
    title = "Embeddings on different machines"
    return Section("machines", title, lead, tables=tables) if rows else None


def _beside(fleet: Fleet) -> Section:
    lead = ("Figures of different machines stand side by side; no ratio is made.",)
    rows = tuple(
        (part.kind or part.machine, *row)
        for part, engine, _ in fleet.engines()
        for row in engine.rows
    )
    tables = (Table("All engines side by side", ("machine", *HEADER[1:]), rows, folded=True),)
    return Section("compared", "Compared", lead, tables=tables)


def fleet_json(fleet: Fleet) -> str:
    """The fleet as JSON; `docs/fleet.schema.json` describes it."""
    return readable_json(
        {
            "fleet": FLEET_SCHEMA,
            "status": fleet.status,
            "alarm": fleet.alarm,
            "missing": list(fleet.missing),
            "unjudged": list(fleet.unjudged),
            "reports": [_report(part) for part in fleet.parts],
            "engines": [
                {
                    "model": engine.model,
                    "precision": engine.precision,
                    "kind": part.kind,
                    "report": part.file,
                    "decision": str(decided.decision),
                    "reason": decided.reason,
                    "details": list(decided.details),
                    "next": decided.next,
                }
                for part, engine, decided in fleet.engines()
            ],
            "machines": [
                {
                    "model": pair.model,
                    "precision": pair.precision,
                    "reports": [part.file for part in pair.parts],
                    "cosine_worst": pair.deltas.cosine_worst,
                    "max_abs": pair.deltas.max_abs,
                    "broken": list(pair.broken),
                }
                for pair in fleet.pairs
            ],
        }
    )


def _report(part: Part) -> dict[str, object]:
    return {
        "file": part.file,
        "kind": part.kind,
        "machine": part.machine,
        "alarm": part.alarm,
        "failures": list(part.failures),
        "interrupted": part.interrupted,
        "origin": dict(part.origin),
        "shard": {key: part.shard[key] for key in ("number", "count", "kinds", "plan")}
        if part.shard
        else None,
    }
