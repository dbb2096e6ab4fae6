"""A user's project for the benchmarks of baselines: MiniLM, the own suite, a fresh process.

Nothing of it is measured here. The engines are OpenVINO's; the model is the shipped MiniLM, or a
copy that does more work in its graph (see benchmarks/trials.py).
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from enginegate.machine import this_machine

SUITE = ("--pyargs", "enginegate.suite", "-q")
SHIPPED = '[tool.enginegate]\nmodel = ["minilm"]\n'
OWN = """
[tool.enginegate.models.judged]
onnx = "judged.onnx"
vocab_size = 30522
seq_len = 32
"""
IGNORED = "cache/\nreport.json\n.pytest_cache/\n"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the suite: its seconds, its exit status, its results, what it printed."""

    elapsed_s: float
    status: int
    results: list[dict]
    output: str

    @property
    def verdicts(self) -> list[str]:
        """The speed verdict of each engine."""
        return [result["speed_verdict"] for result in self.results]

    @property
    def cells(self) -> list[str]:
        """The verdict of each batch size that was timed."""
        return [s["judgement"]["verdict"] for r in self.results for s in r["speeds"]]


def run(folder: Path, *arguments: str) -> Run:
    """One run in a fresh process, with the project's own cache."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *SUITE, f"--gate-report-json={report}", *arguments]
    variables = {**os.environ, "ENGINEGATE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=variables, check=False, capture_output=True, text=True
    )
    elapsed_s = time.perf_counter() - start
    results = json.loads(report.read_text())["results"] if report.exists() else []
    return Run(elapsed_s, done.returncode, results, done.stdout)


def git(folder: Path, *arguments: str) -> str:
    """What git says; CalledProcessError if it fails."""
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    command = ["git", *who, *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder: Path) -> None:
    """Commit everything but the cache."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "more")


def make(folder: Path) -> Path:
    """A project in git whose model is a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(OWN)
    (folder / ".gitignore").write_text(IGNORED)
    write_model(folder, 0)
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def write_model(folder: Path, more: int) -> None:
    """The project's model, with so many multiplications more."""
    from trials import Bench, add_work

    bench = Bench(Path(os.environ.get("ENGINEGATE_CACHE", "~/.cache/enginegate")).expanduser())
    add_work(bench.model.onnx, folder / "judged.onnx", more)


def baseline(folder: Path, model: str = "judged") -> Path:
    """The file of a model's baselines."""
    (found,) = folder.glob(f"baselines/*/{model}.json")
    return found


def edit_variants(folder: Path, edit, model: str = "judged") -> None:
    """Change every stored variant with `edit`."""
    path = baseline(folder, model)
    content = json.loads(path.read_text())
    for variant in content["variants"].values():
        edit(variant)
    path.write_text(json.dumps(content, indent=2, sort_keys=True))


def heading(what: str) -> str:
    """The first line of a table."""
    machine = this_machine()
    return f"{time.strftime('%Y-%m-%d')}, {machine.cpu}, {machine.cores} processors, {what}"
