"""Kill runs with SIGKILL at random moments; then look whether every file is whole.

    python benchmarks/kill9.py [--seed N] [--times M]

Runs of a tiny model build, refresh, report, measure beside a git revision, and serve (on a script
that stands in for tritonserver). Each is killed at a random moment of its usual time. At once
every file must be whole: baselines, history, reports, entries of the cache, saved engines. The next
run must end well, and nothing may be left: no process, temporary file, lock, worktree or segment
of shared memory. Ends with status 1 if something is.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from enginegate.baselines import read_history
from enginegate.baselines.store import read_content
from enginegate.cache import read_entry
from enginegate.errors import EngineGateError
from enginegate.machine import this_machine

ROOT = Path(__file__).parents[1]
SELFTEST = ROOT / "tests" / "selftest"
MARK = "ENGINEGATE_KILL9"
PYPROJECT = """
[tool.enginegate]
backend = "onnxruntime"
batches = [1, 4]
[tool.enginegate.models.tiny]
onnx = "tiny.onnx"
vocab_size = 200
seq_len = 8
"""
BRIEF = ("--gate-measure-s=0.04", "--gate-max-time-per-variant=6", "--gate-level=off")
NAMES = ("json", "html", "markdown", "text")
REPORTS = tuple(f"--gate-report-{name}=run.{name}" for name in NAMES)
KINDS = {
    "build": ("--precision=fp32,int8", "-k", "embeddings", "--gate-save-engines=saved"),
    "refresh": ("--precision=fp32", "--gate-refresh-baselines", "--gate-history", *BRIEF),
    "report": ("--precision=fp32", "-k", "embeddings", *REPORTS),
    "against": ("--precision=fp32", "--gate-against=HEAD", *BRIEF),
    "serve": (),
}
NEXT = {"serve": KINDS["report"]}
SERVE = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.selftest.fake_server import no_models, quiet, stand_in
from enginegate.files import scratch_folder
from enginegate.serving.triton.server import serve
with scratch_folder() as folder, serve(stand_in(folder)(), no_models, quiet):
    time.sleep(1)
"""
ENDED_S = 20.0  # longest that orphans take to end: a server may need ten seconds


class Playground:
    """A project with folders of its own for all that a run may leave."""

    def __init__(self, folder: Path) -> None:
        self.project, self.temporary = folder / "project", folder / "tmp"
        self.cache, self.foreign = folder / "cache", set[str]()
        for path in (self.project, self.temporary):
            path.mkdir()
        (self.project / "pyproject.toml").write_text(PYPROJECT)
        write_tiny(self.project / "tiny.onnx")
        for path in (ROOT / "plugin" / "enginegate" / "suite").glob("test_[at]*.py"):
            shutil.copy(path, self.project)
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
            identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
            subprocess.run(["git", *identity, *words], cwd=self.project, check=True)

    def start(self, kind: str, arguments: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        """Start a run of a kind."""
        suite = ["-m", "pytest", "-q", *arguments]
        words = ["-c", SERVE.format(root=str(ROOT))] if kind == "serve" and not arguments else suite
        own = {MARK: str(os.getpid()), "TMPDIR": str(self.temporary)}
        environment = {**os.environ, **own, "ENGINEGATE_CACHE": str(self.cache)}
        with (self.project.parent / "said.txt").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=self.project,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        """The end of what the last run printed."""
        return (self.project.parent / "said.txt").read_text(errors="replace")[-1500:]

    def broken(self) -> Iterator[str]:
        """Files that are not whole."""
        checks = {
            "baselines": (self.project.glob("baselines/*/tiny.json"), read_content),
            "saved": (self.project.glob("saved/*/*/engine"), read_entry),
            "cache": (self.cache.glob("*/" + "[0-9a-f]" * 32), read_entry),
            "report": (self.project.glob("run.json"), lambda path: json.loads(path.read_text())),
            "page": (self.project.glob("run.html"), whole_page),
        }
        for name, (paths, check) in checks.items():
            for path in paths:
                try:
                    check(path)
                except (EngineGateError, ValueError, OSError, LookupError, TypeError) as error:
                    yield f"{name} {path.name}: {error}"
        if list(self.project.glob("baselines/history/*/tiny.jsonl")):
            read_history(self.project / "baselines", "tiny")

    def left(self) -> Iterator[str]:
        """What should not be there."""
        yield from (f"process {pid}" for pid in living())
        found = (path.name for path in self.temporary.iterdir())
        yield from (f"temporary {name}" for name in found if name not in self.foreign)
        for folder in (self.project, self.cache):
            yield from (f"{path}" for path in folder.rglob("*.held"))
        yield from (f"worktree {path.name}" for path in self.project.glob(".git/worktrees/*"))
        segments = Path("/dev/shm").glob("*enginegate-server-*.held*")
        yield from (f"segment {path.name}" for path in segments if not in_use(path.name))


def whole_page(path: Path) -> None:
    if not path.read_text().rstrip().endswith("</html>"):
        raise ValueError("cut short")


def write_tiny(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("tiny", SELFTEST / "tiny.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_tiny_onnx(path)


def living() -> list[int]:
    """Processes that descend from this script's runs, by a variable of theirs."""
    mark, found = f"{MARK}={os.getpid()}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [int(path.parts[2])] if mark in path.read_bytes().split(b"\0") else []
        except OSError:
            continue
    return found


def in_use(segment: str) -> bool:
    """Whether a living process holds the segment's folder: a server beside this script."""
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            name = path.readlink().name
            if name.endswith(".held") and name in segment:
                return True
        except OSError:
            continue
    return False


def usual_s(ground: Playground, kind: str) -> float:
    """How long a run takes that is not killed. Raises RuntimeError if it does not end well."""
    start = time.monotonic()
    status = ground.start(kind, KINDS[kind]).wait()
    if status or list(ground.broken()):
        raise RuntimeError(f"{kind} ended with {status}: {ground.said()}")
    return time.monotonic() - start


def killed_round(ground: Playground, kind: str, after_s: float) -> list[str]:
    """What is wrong after a run was killed, and after the next one."""
    if kind == "build":
        shutil.rmtree(ground.cache)
    run = ground.start(kind, KINDS[kind])
    time.sleep(after_s)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    end = time.monotonic() + ENDED_S
    while living() and time.monotonic() < end:
        time.sleep(0.2)
    wrong = [f"after the kill: {what}" for what in ground.broken()]
    left = list(ground.left())
    status = ground.start(kind, NEXT.get(kind, KINDS[kind])).wait()
    wrong += [f"the next run ended with {status}: {ground.said()}"] if status else []
    wrong += [f"after the next run: {what}" for what in (*ground.broken(), *ground.left())]
    state = "WRONG" if wrong else "whole"
    print(f"{state} {kind:8} killed at {after_s:5.2f} s, {len(left)} left", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=20)
    given = parser.parse_args()
    rng, wrong = random.Random(given.seed), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        ground = Playground(Path(folder))
        usual = {kind: usual_s(ground, kind) for kind in KINDS}
        print("; ".join(f"{kind} takes {usual[kind]:.1f} s" for kind in KINDS), flush=True)
        ground.foreign = {path.name for path in ground.temporary.iterdir()}  # of other libraries
        print(f"runs that are not killed leave {sorted(ground.foreign)}, not of this package")
        for number in range(given.times):
            kind = list(KINDS)[number % len(KINDS)]
            wrong += killed_round(ground, kind, rng.uniform(0, usual[kind]))
    print("\n".join(wrong))
    print(
        f"{time.strftime('%Y-%m-%d')}, {this_machine().id}: seed {given.seed}, "
        f"{given.times} runs killed, {len(wrong)} things wrong"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
