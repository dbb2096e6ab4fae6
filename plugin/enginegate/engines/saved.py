"""Engines kept for a later run to measure beside: saved folders, and those of a git revision."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginegate.cache import read_entry
from enginegate.engines.build import Built
from enginegate.errors import EngineError, OptionError
from enginegate.files import (
    ending_with_parent,
    parse_json,
    read_text,
    reading,
    scratch_folder,
    write_atomic,
    writing,
)
from enginegate.machine import NO_PROGRAM, git
from enginegate.variants import Precision, Variant, checked_name

SAVING = ".saving-"
_MARKER = "saved.json"
_TAIL_LINES = 15
_NOTHING_SELECTED = 5  # exit status of pytest


def save_engine(built: Built, variant: Variant, root: Path) -> None:
    """Copy a built engine into `root/<model>/<backend>-<precision>`, whole or not at all."""
    target = _folder(root, variant)
    with writing(target), _beside(target) as temporary:
        whole = temporary / "engine"
        shutil.copytree(built.entry.folder, whole / "engine")
        marker = {"backend": built.backend, "precision": built.precision}
        write_atomic(whole / _MARKER, json.dumps(marker))
        if target.exists():
            target.rename(temporary / "before")
        whole.rename(target)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(SAVING, target.parent) as folder:
        yield folder


def saved_engine(root: Path, variant: Variant) -> Built | None:
    """The saved engine of a variant; None if there is none. Raises EngineError if it is not whole.

    Files are compared with the hashes that were saved with them.
    """
    folder = _folder(root, variant)
    if not folder.exists():
        return None
    with reading(folder, "saved engine", "save it again with --gate-save-engines", EngineError):
        marker = parse_json(read_text(folder / _MARKER))
        entry = read_entry(folder / "engine")
        return Built(variant, Precision(marker["precision"]), str(marker["backend"]), entry)


def _folder(root: Path, variant: Variant) -> Path:
    return root / checked_name(variant.model) / variant.key


@contextlib.contextmanager
def engines_of(
    against: str, arguments: Sequence[str], rootpath: Path, python: str
) -> Iterator[Path]:
    """The folder of engines to measure beside: `against` itself, or built from that git revision.

    Without `against` they are built from the project as it is. `arguments` are pytest's, of the run
    that builds them, in the interpreter `python` or, where that is empty, in this one; paths among
    them are absolute. Raises EngineError if nothing was built, and what `check_beside` raises.
    """
    if against and Path(against).is_dir():
        yield Path(against)
        return
    with scratch_folder("enginegate-against-") as folder:
        tree, engines = folder / "tree", folder / "engines"
        present = contextlib.nullcontext((rootpath, list(arguments)))
        was = _worktree(against, tree, rootpath, arguments) if against else present
        with was as (project, there):
            _build(project, engines, [python or sys.executable, "-m", "pytest", *there])
        yield engines


def check_beside(against: str, rootpath: Path, python: str) -> None:
    """Raise OptionError unless there is what `engines_of` is to be asked for."""
    if against and not Path(against).is_dir():
        _commit_of(against, rootpath)
    if python and shutil.which(python) is None:
        raise OptionError(f"--gate-against-python {python}: there is no such program")


def _commit_of(revision: str, rootpath: Path) -> str:
    found = git(rootpath, "rev-parse", "--verify", f"{revision}^{{commit}}")
    if found.returncode == NO_PROGRAM:
        raise OptionError("--gate-against a git revision needs git, which is not installed")
    if found.returncode:
        raise OptionError(
            f"--gate-against {revision}: neither a folder of saved engines nor a git revision in "
            f"{rootpath} ({found.stderr.strip()}); in CI fetch the whole history first"
        )
    return found.stdout.strip()


@contextlib.contextmanager
def _worktree(
    revision: str, tree: Path, rootpath: Path, arguments: Sequence[str]
) -> Iterator[tuple[Path, list[str]]]:
    """The project as it was, checked out beside the present one, and the arguments there."""
    commit = _commit_of(revision, rootpath)
    top = Path(_git(rootpath, "rev-parse", "--show-toplevel"))
    _git(rootpath, "worktree", "prune")  # what a killed run left
    _git(rootpath, "worktree", "add", "--detach", str(tree), commit)
    try:
        project, *there = (
            _moved(word, top, tree) for word in (str(rootpath.resolve()), *arguments)
        )
        if not Path(project).is_dir():
            raise EngineError(f"nothing to measure beside: {revision} has no folder {rootpath}")
        yield Path(project), there
    finally:
        git(rootpath, "worktree", "remove", "--force", str(tree))


def _moved(word: str, top: Path, tree: Path) -> str:
    """An argument that is a path below `top` as the same path below `tree`."""
    return str(tree / Path(word).relative_to(top)) if Path(word).is_relative_to(top) else word


def _git(folder: Path, *arguments: str) -> str:
    found = git(folder, *arguments)
    if found.returncode:
        raise EngineError(f"git {' '.join(arguments)} failed in {folder}: {found.stderr.strip()}")
    return found.stdout.strip()


def _build(project: Path, engines: Path, command: Sequence[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    whole = [*command, "--rootdir=.", f"--gate-save-engines={engines}"]
    try:
        found = subprocess.run(  # noqa: S603
            whole,
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            preexec_fn=ending_with_parent(),
        )
    except OSError as error:
        raise OptionError(f"--gate-against-python {command[0]}: {error.strerror}") from error
    if found.returncode == _NOTHING_SELECTED and "-k" in command:
        engines.mkdir(exist_ok=True)  # of a shard: the revision has none of its models
    if not engines.exists():
        tail = "\n".join(found.stdout.splitlines()[-_TAIL_LINES:])
        raise EngineError(
            f"nothing to measure beside: {' '.join(command)} builds no engine in {project}:\n"
            f"{tail}\n{found.stderr.strip()}"
        )
