"""Further sessions of a refresh: variants timed again, in fresh processes.

Started as `python -m enginegate.session.again TASKS RESULTS`: both files are pickles.
"""

import contextlib
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from enginegate.config import Options
from enginegate.engines import Built, register, registration
from enginegate.errors import EngineError
from enginegate.files import scratch_folder
from enginegate.models import Exported, Workload
from enginegate.session.preparation import Preparation
from enginegate.speed import Comparison, Rules, SequentialTest, Speed, SpeedJudge, own_paths
from enginegate.verdicts import Judgement, Verdict

_FEWEST = 3  # replicates of a session

Speeds = Mapping[str, Sequence[Speed]]


@dataclass(frozen=True)
class Task:
    """A variant to be timed beside the reference.

    Attributes:
        built: its engine.
        target, gpu: class of its backend, and whether it needs a GPU.
        model, workload: what it is timed with.
        batches: batch sizes.
    """

    built: Built
    target: str
    gpu: bool
    model: Exported
    workload: Workload
    batches: Sequence[int]


def task_of(built: Built, model: Exported, workload: Workload, batches: Sequence[int] = ()) -> Task:
    """What another process needs to time a variant."""
    known = registration(built.backend)
    return Task(built, known.target, known.gpu, model, workload, batches)


def measure_again(tasks: Mapping[str, Task], options: Options, rng: random.Random) -> Speeds:
    """Time all variants by turns in one fresh process, by name.

    Half as many replicates as in a run, three at least: sessions differ, so more of them are worth
    more than longer ones. Raises EngineError.
    """
    order = list(tasks)
    rng.shuffle(order)
    asked = ({name: tasks[name] for name in order}, options, rng.getrandbits(32))
    with scratch_folder("enginegate-again-") as folder:
        given, found = folder / "tasks", folder / "results"
        with _pickling(order), given.open("wb") as file:
            _Pickler(file).dump(asked)
        command = [sys.executable, "-m", "enginegate.session.again", str(given), str(found)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(own_paths())}
        done = subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise EngineError(
                f"a further session of the baselines ended with status {done.returncode}: {said}; "
                "they are written with the sessions before it. --gate-sessions 1 measures only one"
            )
        speeds: Speeds = pickle.loads(found.read_bytes())  # noqa: S301 - our own, private file
        return speeds


class _Pickler(pickle.Pickler):
    """Pickles read-only mappings too."""

    def reducer_override(self, obj: Any) -> Any:
        """The way to make a read-only mapping again."""
        return (_read_only, (dict(obj),)) if type(obj) is MappingProxyType else NotImplemented


def _read_only(items: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(dict(items))


@contextlib.contextmanager
def _pickling(names: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EngineError(
            f"{', '.join(names)}: cannot be given to another process ({error}), so the baselines "
            "have one session; define the model in pyproject.toml, or use --gate-sessions 1"
        ) from error


def main(given: str, found: str) -> None:
    """Time what is asked for and write what was found."""
    asked = pickle.loads(Path(given).read_bytes())  # noqa: S301 - our parent's, private file
    Path(found).write_bytes(pickle.dumps(_session(*asked)))


def _session(tasks: Mapping[str, Task], options: Options, seed: int) -> Speeds:
    prepare = Preparation(options, lambda _: contextlib.nullcontext())
    rng = random.Random(seed)  # noqa: S311 - placement, not secrets
    count = max(_FEWEST, options.replicates // 2)
    trial = SequentialTest(Rules(count, 0.0, 0.01, 0.05, early=False), time.monotonic)
    judge = SpeedJudge(trial, options.allowed, {})
    return {name: _speeds(task, prepare, judge, rng) for name, task in tasks.items()}


def _speeds(
    task: Task, prepare: Preparation, judge: SpeedJudge, rng: random.Random
) -> Sequence[Speed]:
    register(task.built.backend, task.target, gpu=task.gpu)
    rig = prepare.rig(task.built, None, task.model, task.workload, rng)
    nothing = Comparison({}, {}, Judgement(Verdict.NO_BASELINE))
    return [one.speed for one in judge.judge(rig, task.batches, nothing, "").values()]


if __name__ == "__main__":
    main(*sys.argv[1:])
