"""An arm in a process of its own, with another interpreter and its libraries.

Started as `python -m enginegate.speed.worker`. Reads a JSON object a line from standard input:
first what to load, then what to time; answers each with a line of JSON.
"""

import contextlib
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginegate.engines import Built, get_backend, register, registration
from enginegate.errors import EngineError
from enginegate.files import scratch_folder
from enginegate.machine import Child
from enginegate.models import Batch, Workload, probe_of
from enginegate.speed.arms import Arm, LocalArm, OpenArm, Turn, placed

_END_WAIT_S = 10.0
_PROBE = 0  # its key among the batch sizes


@dataclass(frozen=True)
class RemoteArm:
    """An engine in another process."""

    worker: Child

    def run(self, batch: int, time_s: float) -> Turn:
        """Seconds of each call, timed over there, until `time_s` has passed; one at least."""
        return tuple(_ask(self.worker, batch=batch, time_s=time_s)["seconds"])


def remote_arm(python: str, built: Built, workload: Workload, threads: int) -> OpenArm:
    """An arm in a fresh process of `python`. Raises EngineError if the engine is not loaded."""
    entry, probe = built.entry, probe_of(workload)
    load = {
        "backend": built.backend,
        "target": registration(built.backend).target,
        "folder": str(entry.folder),
        "properties": dict(entry.properties),
        "threads": threads,
    }

    @contextlib.contextmanager
    def opened(inputs: Mapping[int, Batch], rng: random.Random) -> Iterator[Arm]:
        with scratch_folder("enginegate-worker-") as folder:
            path = folder / "inputs.npz"
            _save({**inputs, _PROBE: probe}, path)
            with _started(python) as worker:
                _ask(worker, load=load, inputs=str(path), seed=rng.getrandbits(32))
                yield RemoteArm(worker)

    return opened


def _save(batches: Mapping[int, Batch], path: Path) -> None:
    arrays: dict[str, Any] = {f"{b}/{k}": v for b in batches for k, v in batches[b].items()}
    np.savez(path, **arrays)


@contextlib.contextmanager
def _started(python: str) -> Iterator[Child]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(own_paths())}
    worker = Child([python, "-m", "enginegate.speed.worker"], env=environment)
    try:
        yield worker
    finally:
        worker.close(_END_WAIT_S)


def own_paths() -> list[str]:
    """Paths of this project's modules, without this interpreter's libraries."""
    foreign = (sys.base_prefix, sys.prefix)
    return [path for path in sys.path if path and not path.startswith(foreign)]


def _ask(worker: Child, **request: Any) -> Any:
    worker.order(**request)
    try:
        answer = worker.answer()
    except EOFError as error:
        answer = {"error": f"it {error}"}
    if "error" in answer:
        raise EngineError(f"worker {worker.command!r}: {answer['error']}")
    return answer


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


if __name__ == "__main__":
    main()
