"""What was seen of an installed and a running plugin before it was made safe, and what is seen now.

    python benchmarks/safety.py

A row for each item: what was seen, in the words of who tried it, and what is seen in a run made
now: the words of a run in a fresh folder, or how the tests end that plant the fault. Ends with
status 1 if anything is seen that should not be. Hostile files, names and answers: hostile.py; runs
killed: kill9.py; popular plugins: installed.py.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from installed import SELFTEST, gated

from enginegate.cli import main as command
from enginegate.config.arguments import GATE, SERVING

ROOT = Path(__file__).parents[1]
NAMES = ["--" + option.name.replace("_", "-") for option in (*GATE, *SERVING)]


@dataclass(frozen=True)
class Item:
    """Something that was wrong.

    Attributes:
        what: it is about.
        before: what was seen.
        look: what is seen now, of a run in the folder given.
        right: a pattern that the whole of it fits.
    """

    what: str
    before: str
    look: Callable[[Path], str]
    right: str


def run(folder: Path, *words: str) -> str:
    """What pytest prints, and its status."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return f"{ended.stdout}{ended.stderr}\nstatus {ended.returncode}"


def lines(said: str, pattern: str) -> str:
    """The lines with the pattern, and the status."""
    found = [
        line.strip(" =") for line in said.splitlines() if re.search(f"{pattern}|^status", line)
    ]
    return "; ".join(dict.fromkeys(found))


def tests(*names: str) -> Callable[[Path], str]:
    """How these tests of the selftest end."""

    def look(_folder: Path) -> str:
        said = run(ROOT, "-q", "--show-capture=no", *(f"{SELFTEST}/{name}" for name in names))
        (tally,) = re.findall(r"^\d+ .*?(?=(?:, \d+ warnings?)? in )", said, re.MULTILINE)
        files = dict.fromkeys(name.partition("::")[0] for name in names)
        return f"{tally}: {', '.join(files)}"

    return look


def options(folder: Path) -> str:
    added = "".join(f"    parser.addoption({name!r})\n" for name in NAMES)
    (folder / "conftest.py").write_text(f"def pytest_addoption(parser):\n{added}")
    (folder / "test_it.py").write_text("def test_it(): pass\n")
    return f"{len(NAMES)} names; {lines(run(folder, '-q', '--model=x', '--threads=2'), 'passed')}"


def fixtures(folder: Path) -> str:
    (folder / "test_it.py").write_text("def test(engine): assert 0\ndef test_it(workload): pass\n")
    return lines(run(folder, "-q"), "fixture '.*' not found|error")


def root(folder: Path) -> str:
    report = folder / "else where" / "run.json"
    report.parent.mkdir()
    words = ("--precision=fp32", "-k", "embeddings", "--gate-report-json", str(report))
    project = gated(folder / "project")
    return " | then: ".join(lines(run(project, *words), "passed|[Ee]rror") for _ in range(2))


def only_a_table(folder: Path) -> str:
    project = gated(folder / "project")
    for path in project.glob("test_*.py"):
        path.unlink()
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *words], cwd=project, check=True)
    words = ("--pyargs", "enginegate.suite", "--precision=fp32", "--gate-against=HEAD")
    return lines(run(project, *words), "(slower|faster) \\(|passed")


def outside_git(folder: Path) -> str:
    project, start = gated(folder / "project"), sum(os.times()[2:4])
    said = run(project, "--precision=fp32", "--gate-against=HEAD")
    return f"{lines(said, 'ERROR')}; after {sum(os.times()[2:4]) - start:.1f} s of a processor"


def names(folder: Path) -> str:
    project, said = gated(folder / "project"), []
    table = (project / "pyproject.toml").read_text()
    for name in ("../../x", "/abs", "calibration"):
        (project / "pyproject.toml").write_text(table.replace("models.tiny", f"models.'{name}'"))
        said.append(lines(run(project, "--precision=fp32"), "ERROR"))
    return " | ".join(said)


def comment(folder: Path) -> str:
    report, page = ROOT / "docs/examples/report.json", folder / "comment.md"
    with contextlib.redirect_stdout(io.StringIO()):
        command(["report", str(report), "--markdown", str(page)])
    written = page.read_text()
    return f"{len(written)} letters, {written.count('&amp;#')} signs escaped twice"


ITEMS = [
    Item(
        "options of a project's own", "18 of 18 names tried collide: every pytest call fails",
        options, r"\d+ names; 1 passed.*status 0",
    ),
    Item(
        "--precision, where another plugin has it", "as every name",
        tests(
            "test_installed.py::test_a_precision_that_is_ours_and_theirs_is_theirs",
            "test_installed.py::test_ours_has_another_name_where_theirs_is_taken",
        ), "2 passed.*",
    ),
    Item(
        "fixtures where nobody opted in", "def test(engine): assert 0 is skipped, green; an "
        "undefined `workload` ends in a bare KeyError",
        fixtures, ".*'engine' not found.*'workload' not found.*2 errors.*status 1",
    ),
    Item(
        "a report's path with a space, the second time", "moves the root: the model table is not "
        "read, the run fails", root, "1 passed.*status 0 .* then: 1 passed.*status 0",
    ),
    Item(
        "flags under other plugins", "--codspeed, sugar, html, rerunfailures hide them",
        tests("test_installed.py"), r"\d+ passed: .*",
    ),
    Item(
        "the served engine, attacked by another user", "uid 65534 posted a model and ran as root, "
        "with the secrets of the environment",
        tests("test_serving_access.py"), r"\d+ passed: .*",
    ),
    Item(
        "--gate-against=HEAD in a project that has only a table", "the arguments are dropped and "
        "nothing is built", only_a_table, r".*(slower|faster) \(.*passed.*status 0",
    ),
    Item(
        "--gate-against outside git", "refused after 65 s", outside_git,
        r"ERROR: .*not a git.*after \d\.\d s.*",
    ),
    Item(
        "the workflows of the pages", "the one for pull requests fails; git commit without git "
        "add; torch with CUDA", tests("test_workflows.py"), r"\d+ passed: .*",
    ),
    Item(
        "names of models", "../../x and /abs write outside of the folder; `calibration` shares a "
        "file with --calibrate", names, "(ERROR: .*status 4( \\| )?){3}",
    ),
    Item(
        "every place that takes a name", "as above", tests("test_names.py"), r"\d+ passed: .*",
    ),
    Item(
        "texts of strangers in terminal, log and comment", "control characters, ::error::, "
        "@mentions and table pipes are written raw", tests("test_outlets.py"), r"\d+ passed: .*",
    ),
    Item(
        "signs in a comment", "readers see recall&#64;10", comment,
        r"\d+ letters, 0 signs escaped twice",
    ),
    Item(
        "code in a model's folder, pickles", "run where sentence-transformers reads it",
        tests("test_own_code.py"), r"\d+ passed: .*",
    ),
    Item(
        "external data", "a Constant node's does not count in the model's hash; links are "
        "followed anywhere", tests("test_model_files.py"), r"\d+ passed: .*",
    ),
    Item(
        "damaged files and entries, stopped and killed runs, sources, missing extras, full disks",
        "raw tracebacks, lost reports, INTERNALERROR without the extra `cpu`, 540 MB left behind",
        tests("test_nothing_lost.py", "test_bad_input.py"), r"\d+ passed: .*",
    ),
    Item(
        "--gate-serve=URL", "11 of 12 hostile answers raise raw exceptions",
        tests("test_serving_hostile.py"), r"\d+ passed: .*",
    ),
    Item(
        "every documented command", "options that there are not",
        tests("test_docs.py"), r"\d+ passed: .*",
    ),
]  # fmt: skip


def main() -> int:
    wrong = 0
    print(f"{time.strftime('%Y-%m-%d')}")
    for item in ITEMS:
        with tempfile.TemporaryDirectory() as folder:
            seen = item.look(Path(folder)).replace(folder, "…")
        fine = re.fullmatch(item.right, seen, re.DOTALL) is not None
        wrong += not fine
        print(f"\n{item.what}{'' if fine else ': WRONG'}")
        for name, text in (("before", item.before), ("now", seen)):
            print(textwrap.fill(text, 100, initial_indent=f"  {name:7}", subsequent_indent=" " * 9))
        sys.stdout.flush()
    print(f"\n{len(ITEMS)} items, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
