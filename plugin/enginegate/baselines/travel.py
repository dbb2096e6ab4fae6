"""Baselines that were written on another machine, brought to where they are kept."""

from collections.abc import Mapping
from pathlib import Path

from enginegate.baselines.store import CALIBRATION, parse_content, read_content, write_content
from enginegate.errors import BaselineError
from enginegate.files import locked, readable_json
from enginegate.variants import name_fault


def changed_baselines(before: Path, after: Path) -> dict[str, str]:
    """The variants that the files of one folder have and those of another have not.

    The text of a baseline file by its name, `<machine>/<model>.json`. Raises BaselineError.
    """
    files = sorted(path for path in after.glob("*/*.json") if path.name != CALIBRATION)
    found = {str(path.relative_to(after)): _changed(before, after, path) for path in files}
    return {name: text for name, text in found.items() if text}


def _changed(before: Path, after: Path, path: Path) -> str:
    old = read_content(before / path.relative_to(after)) or {"variants": {}}
    new = read_content(path)
    changed = {k: v for k, v in new["variants"].items() if v != old["variants"].get(k)}
    return readable_json({**new, "variants": changed}) if changed else ""


def take_baselines(root: Path, found: Mapping[str, str]) -> list[Path]:
    """Write them below `root`, beside the variants that are there; the files.

    Raises BaselineError for what may not stand there; that file is then left as it is.
    """
    return [_take(root, name, text) for name, text in found.items()]


def _take(root: Path, name: str, text: str) -> Path:
    machine, _, file = name.partition("/")
    if name_fault(machine) or name_fault(file.removesuffix(".json")) or not file.endswith(".json"):
        raise BaselineError(f"{ascii(name)[:200]} is no baseline of a machine: it is not written")
    path = root / name
    new = parse_content(path, text)
    with locked(path):
        old = read_content(path) or {"variants": {}}
        write_content(path, {**new, "variants": old["variants"] | new["variants"]})
    return path
