"""What a run says in each state that a baseline may be in.

    python benchmarks/baseline_states.py > results/baseline-states.txt

A refresh at a commit, then one change at a time: a row each with the speed verdict, what it was
compared with, and the sentence that says what is missing, if any. MiniLM, fp32, batch 8.
"""

import shutil
import tempfile
from pathlib import Path

from user_project import Run, commit, edit_variants, git, heading, make, run, write_model

ASKED = ("--precision=fp32", "--gate-batches=8", "--gate-max-time-per-variant=30")
MORE = 1  # multiplications of a changed model
_TOLD = ("not in the cache", "does not give", "libraries changed", "incomparable", "cannot detect")


def unchanged(_folder: Path) -> None:
    """Nothing."""


def model_changed(folder: Path) -> None:
    """A commit changes the model."""
    write_model(folder, MORE)
    commit(folder)


def without_cache(folder: Path) -> None:
    """The same, without this machine's cache."""
    model_changed(folder)
    shutil.rmtree(folder / "cache")


def shallow(folder: Path) -> None:
    """The same, in a shallow clone that lacks the baseline's commit."""
    model_changed(folder)
    clone = folder.with_name("clone")
    git(folder.parent, "clone", "--quiet", "--depth=1", f"file://{folder}", str(clone))
    shutil.rmtree(folder)
    clone.rename(folder)


def revision_gone(folder: Path) -> None:
    """The same, and nobody knows the baseline's commit."""
    edit_variants(folder, lambda variant: variant["provenance"].update(revision="a" * 40))
    without_cache(folder)


def made_dirty(folder: Path) -> None:
    """The same, with a baseline from files outside git."""
    edit_variants(folder, lambda v: v["provenance"].update(revision="b" * 40 + "-dirty"))
    without_cache(folder)


def dirty_now(folder: Path) -> None:
    """A changed model that is not committed."""
    write_model(folder, MORE)


def old_file(folder: Path) -> None:
    """A baseline of a version that knew no engines."""
    edit_variants(folder, lambda variant: variant.pop("provenance"))


STATES = (
    unchanged, model_changed, dirty_now, without_cache, shallow, revision_gone, made_dirty, old_file
)  # fmt: skip


def row(name: str, found: Run) -> str:
    """The verdict, what it was compared with, and what is missing."""
    (result,) = found.results
    against = result["context"]["against"] or "-"
    said = [line for line in found.output.splitlines() if any(told in line for told in _TOLD)]
    lines = [f"{name:14} {result['speed_verdict']:12} {found.elapsed_s:5.0f} s  {against}"]
    return "\n".join([*lines, *(f"{'':15}{line}" for line in said)])


def main() -> None:
    """Print the table."""
    print(heading("fp32, batch 8, one run each"))
    with tempfile.TemporaryDirectory() as name:
        first = make(Path(name) / "first")
        run(first, *ASKED, "--gate-refresh-baselines")
        commit(first)
        for state in STATES:
            folder = Path(name) / "project"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(first, folder)
            state(folder)
            print(row(state.__name__.replace("_", " "), run(folder, *ASKED)), flush=True)


if __name__ == "__main__":
    main()
