"""A shard on the machine that runs it: a fresh pytest, beside which no other shard is timed.

Knows nothing of Ray.
"""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from enginegate.baselines import changed_baselines
from enginegate.files import alone_here, default_cache, ending_with_parent, scratch_folder

PROJECT = "\0project"  # in arguments, for the folder of the project; no argument can hold a NUL
_PLACE = "enginegate-shard"
_LOOK_S = 1.0
_CHUNK_BYTES = 1 << 16
_END_S = 20.0  # for a run that is to end orderly

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """What a machine does for a shard.

    Attributes:
        arguments: of pytest; PROJECT stands for the folder of the project.
        folder: where pytest is started, inside the project.
        owns_cache: the run has an engine cache that outlives it; else it gets the machine's.
        baselines: folder whose changes come back, inside the project; empty for none.
    """

    arguments: tuple[str, ...]
    folder: str
    owns_cache: bool
    baselines: str


def run_shard(order: Order, project: Path) -> Generator[Event]:
    """Run a shard in a copy of the project, once no other shard runs on this machine.

    Yields `began` with the machine, each `line` that pytest prints, and `ended` with the exit
    status, the report (None if there is none), the baselines that changed and seconds since 1970.
    """
    with alone_here(_PLACE) as place, scratch_folder() as scratch:
        began_s = time.time()
        yield {"began": {"host": socket.gethostname(), "began_s": began_s}}
        copy, report = scratch / "project", scratch / "report.json"
        shutil.copytree(project, copy, symlinks=True)
        with _pytest(_command(order, copy, report), copy / order.folder, place) as process:
            yield from ({"line": line} for line in _lines(process.stdout))
            status = process.wait()
        yield {
            "ended": {
                "status": status,
                "report": report.read_text("utf-8") if report.exists() else None,
                "baselines": _baselines(order, project, copy),
                "began_s": began_s,
                "ended_s": time.time(),
            }
        }


def _command(order: Order, project: Path, report: Path) -> list[str]:
    said = [word.replace(PROJECT, str(project)) for word in order.arguments]
    cache = [] if order.owns_cache else [f"--gate-engine-cache={default_cache()}"]
    return [sys.executable, "-m", "pytest", *said, *cache, f"--gate-report-json={report}"]


@contextlib.contextmanager
def _pytest(command: list[str], folder: Path, place: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends with this one, and holds the place on the machine as long as it runs."""
    process = subprocess.Popen(  # noqa: S603
        command,
        cwd=folder,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(place,),
        preexec_fn=ending_with_parent(),  # noqa: PLW1509 - one call of the system
    )
    try:
        yield process
    finally:
        _end(process)


def _lines(stream: "IO[bytes] | None") -> Iterator[str]:
    """Lines as they come.

    Looks up between them: Ray's way to cancel waits until Python comes to its next instruction.
    """
    assert stream  # noqa: S101 - a pipe
    rest, found = b"", b"?"
    while found:
        if select.select([stream], [], [], _LOOK_S)[0]:
            found = os.read(stream.fileno(), _CHUNK_BYTES)
            *lines, rest = (rest + found).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
    yield from (rest.decode(errors="replace") for rest in [rest] if rest)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Have it end orderly, as Ctrl-C does; kill it if it does not."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _baselines(order: Order, before: Path, after: Path) -> dict[str, Any]:
    if not order.baselines:
        return {}
    return changed_baselines(before / order.baselines, after / order.baselines)
