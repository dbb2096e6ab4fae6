"""An arm in a process of its own, with another interpreter and its libraries.

Started as `python -m enginegate.worker`. Reads a JSON object a line from standard input: first what
to load, then what to time; answers each with a line of JSON.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from enginegate.engines import Built, get_backend, register, target_of
from enginegate.errors import EngineError
from enginegate.files import scratch_folder
from enginegate.models import Batch, Workload, probe_of
from enginegate.speed.arms import Arm, LocalArm, OpenArm, Turn, placed

_END_WAIT_S = 10.0
_PROBE = 0  # its key among the batch sizes


@dataclass(frozen=True)
class Load:
    """What a worker loads.

    Attributes:
        backend: its name.
        target: `module:Class` of the backend, as registered in the parent process.
        folder: the engine's files.
        properties: what its builder returned.
        threads: threads it may use.
    """

    backend: str
    target: str
    folder: Path
    properties: Mapping[str, Any]
    threads: int


@dataclass(frozen=True)
class RemoteArm:
    """An engine in another process."""

    process: "subprocess.Popen[str]"

    def run(self, batch: int, time_s: float) -> Turn:
        """Seconds of each call, timed over there, until `time_s` has passed; one at least."""
        return tuple(_ask(self.process, {"batch": batch, "time_s": time_s})["seconds"])


@contextlib.contextmanager
def open_remote(
    python: str, load: Load, inputs: Mapping[int, Batch], probe: Batch, seed: int
) -> Iterator[RemoteArm]:
    """Load an engine in a fresh process of `python`. Raises EngineError if that fails."""
    with scratch_folder("enginegate-worker-") as folder:
        batches = {**inputs, _PROBE: probe}
        arrays: dict[str, Any] = {f"{b}/{k}": v for b in batches for k, v in batches[b].items()}
        path = folder / "inputs.npz"
        np.savez(path, **arrays)
        with _started(python) as process:
            order: dict[str, Any] = {"load": _as_json(load), "inputs": str(path), "seed": seed}
            _ask(process, order)
            yield RemoteArm(process)


def _as_json(load: Load) -> dict[str, Any]:
    return {**vars(load), "folder": str(load.folder), "properties": dict(load.properties)}


@contextlib.contextmanager
def _started(python: str) -> Iterator["subprocess.Popen[str]"]:
    command = [python, "-m", "enginegate.speed.worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(own_paths())}
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        _end(process)


def own_paths() -> list[str]:
    """Paths of this project's modules, without this interpreter's libraries."""
    foreign = (sys.base_prefix, sys.prefix)
    return [path for path in sys.path if path and not path.startswith(foreign)]


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(OSError):
        _pipe(process.stdin).close()
    try:
        process.wait(_END_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _pipe(process.stdout).close()


def _ask(process: "subprocess.Popen[str]", request: Mapping[str, Any]) -> Any:
    try:
        _pipe(process.stdin).write(json.dumps(request) + "\n")
        _pipe(process.stdin).flush()
    except OSError:
        pass  # it has ended: its last words follow
    line = _pipe(process.stdout).readline()
    answer = json.loads(line) if line else {"error": f"it ended with status {process.wait()}"}
    if "error" in answer:
        raise EngineError(f"worker {process.args!r}: {answer['error']}")
    return answer


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise ValueError("the worker was started without pipes")
    return stream


def main() -> None:
    """Serve one engine until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    requests = (json.loads(line) for line in sys.stdin)
    with contextlib.ExitStack() as stack:
        arm: LocalArm | None = None
        for request in requests:
            answer: dict[str, Any] = {}
            try:
                if arm is None:
                    arm = stack.enter_context(_loaded(request))
                else:
                    answer = {"seconds": arm.run(request["batch"], request["time_s"])}
            except Exception as error:  # whatever it is, the parent is to say it
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


@contextlib.contextmanager
def _loaded(request: Mapping[str, Any]) -> Iterator[LocalArm]:
    load, rng = request["load"], random.Random(request["seed"])  # noqa: S311 - placement
    inputs = _batches(Path(request["inputs"]), rng)
    padding = bytearray(rng.randrange(1 << 20))
    register(load["backend"], load["target"])
    backend, probe = get_backend(load["backend"]), inputs.pop(_PROBE)
    folder = Path(load["folder"])
    with backend.load(folder, load["properties"], probe, load["threads"]) as engine:
        yield LocalArm(engine, inputs)
    del padding


def _batches(path: Path, rng: random.Random) -> dict[int, Batch]:
    found: dict[int, dict[str, Any]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays:
            batch, _, name = key.partition("/")
            found.setdefault(int(batch), {})[name] = arrays[key]
    return {batch: placed(inputs, rng) for batch, inputs in found.items()}


def remote_arm(python: str, built: Built, workload: Workload, threads: int) -> OpenArm:
    """An arm in a process of `python`."""
    entry = built.entry
    target = target_of(built.backend)
    load = Load(built.backend, target, entry.folder, entry.properties, threads)
    probe = probe_of(workload)

    def opened(inputs: Mapping[int, Batch], rng: random.Random) -> AbstractContextManager[Arm]:
        return open_remote(python, load, inputs, probe, rng.getrandbits(32))

    return opened


if __name__ == "__main__":
    main()
