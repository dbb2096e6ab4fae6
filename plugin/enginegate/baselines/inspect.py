"""The baselines of all machines as rows to read, and their removal."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from enginegate.baselines.store import CALIBRATION, parse_content, read_content, write_content
from enginegate.errors import BaselineError
from enginegate.machine import git

Row = tuple[str, ...]
_NOTHING = "-"


def list_rows(root: Path) -> Iterator[Row]:
    """A row per variant of every machine and model. Raises BaselineError."""
    yield ("machine", "model", "variant", "batches", "sessions", "newest")
    for path in _files(root):
        for key, variant in _variants(read_content(path)):
            cells = variant["cells"]
            sessions = max(len(found) for found in cells.values())
            newest = max(s["date"] for found in cells.values() for s in found)
            batches = ",".join(sorted(cells, key=int))
            yield (path.parent.name, path.stem, key, batches, str(sessions), newest)


def show_rows(root: Path, model: str) -> Iterator[Row]:
    """A row per session and batch size of a model. Raises BaselineError."""
    yield ("machine", "variant", "batch", "date", "p50 ms", "x ref", "spread", "replicates")
    files = [path for path in _files(root) if path.stem == model]
    if not files:
        raise BaselineError(f"no baseline of {model} in {root}: `enginegate baselines list`")
    for path in files:
        for key, variant in _variants(read_content(path)):
            for batch, sessions in sorted(variant["cells"].items(), key=lambda cell: int(cell[0])):
                for session in sessions:
                    yield (path.parent.name, key, batch, *_session(session))


def _session(session: Mapping[str, Any]) -> Row:
    ratios = session["ratios"]["p50"]
    logs = [math.log(ratio) for ratio in ratios]
    return (
        session["date"],
        _milliseconds(session),
        f"{math.exp(-fmean(logs)):.2f}",
        f"{stdev(logs):.1%}" if len(logs) > 1 else _NOTHING,
        str(len(logs)),
    )


def _milliseconds(session: Mapping[str, Any]) -> str:
    return f"{1000 * session['p50_s']:#.3g}".rstrip(".")


def diff_rows(root: Path, revision: str) -> Iterator[Row]:
    """A row per batch size whose baseline is another than in a git revision.

    Raises BaselineError, also where git does not know the revision.
    """
    yield (
        "machine",
        "model",
        "variant",
        "batch",
        "was",
        "is",
        "p50 ms was",
        "is",
        "change of ratio",
    )
    known = _git(root, "ls-tree", "-r", "--name-only", revision, ".").splitlines()
    for name in sorted({*known, *(p.relative_to(root).as_posix() for p in _files(root))}):
        if _is_baseline(Path(name)):
            old = _git(root, "show", f"{revision}:./{name}") if name in known else ""
            before = parse_content(Path(f"{revision}:{name}"), old) if old else None
            yield from _differences(Path(name), before, read_content(root / name))


def _differences(name: Path, before: Any, after: Any) -> Iterator[Row]:
    old, new = dict(_cells(before)), dict(_cells(after))
    for key, batch in sorted(old.keys() | new.keys(), key=lambda cell: (cell[0], int(cell[1]))):
        was, now = old.get((key, batch)), new.get((key, batch))
        if was != now:
            yield (name.parent.name, name.stem, key, batch, *_compared(was, now))


def _compared(was: Any, now: Any) -> Row:
    words = [f"{len(s)} sessions, {s[-1]['date']}" if s else _NOTHING for s in (was, now)]
    times = [_milliseconds(s[-1]) if s else _NOTHING for s in (was, now)]
    if not was or not now:
        return (*words, *times, "new" if now else "removed")
    change = _level(now) - _level(was)
    return (*words, *times, f"{math.expm1(change):+.1%}")


def _level(sessions: list[Any]) -> float:
    return fmean(fmean(math.log(r) for r in s["ratios"]["p50"]) for s in sessions)


def _cells(content: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    for key, variant in _variants(content):
        yield from (((key, batch), sessions) for batch, sessions in variant["cells"].items())


def prune(root: Path, machine: str, model: str, variant: str, *, dry_run: bool) -> Iterator[str]:
    """Remove what all the given names match; say what. Raises BaselineError if none is given."""
    if not (machine or model or variant):
        raise BaselineError("name what to prune: --machine, --model or --variant")
    for path in _files(root):
        if (machine or path.parent.name) == path.parent.name and (model or path.stem) == path.stem:
            content = read_content(path)
            gone = [key for key, _ in _variants(content) if (variant or key) == key]
            done = "would remove" if dry_run else "removed"
            yield from (f"{done} {path.parent.name} {path.stem} {key}" for key in gone)
            if gone and not dry_run:
                _remove(path, content, gone)


def _remove(path: Path, content: Any, gone: list[str]) -> None:
    kept = {key: value for key, value in _variants(content) if key not in gone}
    if kept:
        write_content(path, {**content, "variants": kept})
    else:
        path.unlink()


def _files(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*/*.json")) if _is_baseline(path)]


def _is_baseline(path: Path) -> bool:
    return path.suffix == ".json" and path.parent.name != "" and path.name != CALIBRATION


def _variants(content: Any) -> list[tuple[str, Any]]:
    return sorted(content["variants"].items()) if content else []


def _git(root: Path, *arguments: str) -> str:
    found = git(root, *arguments)
    if found.returncode != 0:
        raise BaselineError(f"git {' '.join(arguments)}: {found.stderr.strip()}")
    return found.stdout
