"""Engines kept for a later run to measure beside: saved folders, and those of a git revision."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginegate.cache import read_entry
from enginegate.engines.build import Built
from enginegate.errors import EngineError, OptionError
from enginegate.files import parse_json, write_atomic
from enginegate.machine import NO_PROGRAM, git
from enginegate.variants import Precision, Variant, checked_name

_MARKER = "saved.json"
_TAIL_LINES = 15


def save_engine(built: Built, variant: Variant, root: Path) -> None:
    """Copy a built engine into `root/<model>/<backend>-<precision>`, whole or not at all."""
    target = _folder(root, variant)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target.parent) as temporary:
        whole = Path(temporary) / "engine"
        shutil.copytree(built.entry.folder, whole / "engine")
        marker = {"backend": built.backend, "precision": built.precision}
        write_atomic(whole / _MARKER, json.dumps(marker))
        shutil.rmtree(target, ignore_errors=True)
        whole.rename(target)


def saved_engine(root: Path, variant: Variant) -> Built | None:
    """The saved engine of a variant; None if there is none. Raises EngineError if it is not whole.

    Files are compared with the hashes that were saved with them.
    """
    folder = _folder(root, variant)
    if not folder.exists():
        return None
    try:
        marker = parse_json((folder / _MARKER).read_text(encoding="utf-8"))
        entry = read_entry(folder / "engine")
        return Built(variant, Precision(marker["precision"]), marker["backend"], entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"saved engine {folder} is not whole ({error}); save it again with --save-engines"
        ) from error


def _folder(root: Path, variant: Variant) -> Path:
    return root / checked_name(variant.model) / variant.key


@contextlib.contextmanager
def engines_of(
    against: str, arguments: Sequence[str], rootpath: Path, python: str
) -> Iterator[Path]:
    """The folder of engines to measure beside: `against` itself, or built from that git revision.

    Without `against` they are built from the project as it is. `arguments` are pytest's, of the run
    that builds them, in the interpreter `python` or, where that is empty, in this one. Raises
    OptionError for what is neither a folder nor a revision, EngineError if nothing was built.
    """
    if against and Path(against).is_dir():
        yield Path(against)
        return
    with tempfile.TemporaryDirectory(prefix="enginegate-against-") as folder:
        tree, engines = Path(folder, "tree"), Path(folder, "engines")
        present = contextlib.nullcontext(rootpath)
        with _worktree(against, tree, rootpath) if against else present as project:
            _build(project, engines, [python or sys.executable, "-m", "pytest", *arguments])
        yield engines


@contextlib.contextmanager
def _worktree(revision: str, tree: Path, rootpath: Path) -> Iterator[Path]:
    """The project as it was, checked out beside the present one."""
    commit = _git(rootpath, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not commit:
        raise OptionError(
            f"--against {revision}: neither a folder of saved engines nor a git revision here"
        )
    inside = _git(rootpath, "rev-parse", "--show-prefix")
    _git(rootpath, "worktree", "add", "--detach", str(tree), commit)
    try:
        yield tree / inside
    finally:
        _git(rootpath, "worktree", "remove", "--force", str(tree))


def _git(folder: Path, *arguments: str) -> str:
    found = git(folder, *arguments)
    if found.returncode == NO_PROGRAM:
        raise OptionError("--against a git revision needs git, which is not installed")
    return found.stdout.strip() if found.returncode == 0 else ""


def _build(project: Path, engines: Path, command: Sequence[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    whole = [*command, f"--save-engines={engines}"]
    try:
        found = subprocess.run(  # noqa: S603
            whole, cwd=project, capture_output=True, text=True, check=False, env=environment
        )
    except OSError as error:
        raise OptionError(f"--against-python {command[0]}: {error.strerror}") from error
    if not engines.exists():
        tail = "\n".join(found.stdout.splitlines()[-_TAIL_LINES:])
        raise EngineError(
            f"nothing to measure beside: {' '.join(command)} builds no engine in {project}:\n"
            f"{tail}\n{found.stderr.strip()}"
        )
