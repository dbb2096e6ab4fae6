"""Further sessions of a refresh: variants timed again, in fresh processes.

Started as `python -m enginegate.session.again FOLDER`, which holds what to time as JSON and arrays;
what was found is written into it.
"""

import contextlib
import functools
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enginegate.cache import Entry
from enginegate.config import Options
from enginegate.engines import (
    Built,
    Engine,
    Registration,
    open_reference,
    register,
    registration,
)
from enginegate.errors import EngineError
from enginegate.files import parse_json, read_text, readable_json, scratch_folder, write_atomic
from enginegate.models import Batch, Bucketed, Exported, Workload, probe_of
from enginegate.session.preparation import arms_on_gpu, load_at_once, replicate_s, rig_of
from enginegate.speed import (
    FEWEST_REPLICATES,
    Comparison,
    SequentialTest,
    Speed,
    SpeedJudge,
    gating_rules,
    local_arm,
    own_paths,
)
from enginegate.variants import Precision, Variant
from enginegate.verdicts import Judgement, Verdict

_ASKED, _FOUND = "tasks.json", "speeds.json"
_UNJUDGED = Judgement(Verdict.NO_BASELINE)

Speeds = Mapping[str, Sequence[Speed]]


@dataclass(frozen=True)
class Task:
    """A variant to be timed beside its control.

    Attributes:
        built: its engine.
        control: the engine that it is timed beside; None for the reference.
        known: what is known of its backend.
        model, workload: what it is timed with.
        batches: batch sizes.
    """

    built: Built
    control: Built | None
    known: Registration
    model: Exported
    workload: Workload
    batches: Sequence[int]


def task_of(
    built: Built,
    control: Built | None,
    model: Exported,
    workload: Workload,
    batches: Sequence[int] = (),
) -> Task:
    """What another process needs to time a variant."""
    known = registration(built.backend)
    return Task(built, control, known, model, workload, batches)


def measure_again(tasks: Mapping[str, Task], options: Options, rng: random.Random) -> Speeds:
    """Time all variants by turns in one fresh process, by name.

    Half as many replicates as in a run, three at least: sessions differ, so more of them are worth
    more than longer ones. Raises EngineError.
    """
    order = list(tasks)
    rng.shuffle(order)
    with scratch_folder("enginegate-again-") as folder:
        told = [_told(name, tasks[name], folder, place) for place, name in enumerate(order)]
        _write(folder / _ASKED, {**_how(options), "seed": rng.getrandbits(32), "tasks": told})
        command = [sys.executable, "-m", "enginegate.session.again", str(folder)]
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
        found = _read(folder / _FOUND)
    return {name: tuple(map(_speed, speeds)) for name, speeds in found.items()}


def _how(options: Options) -> dict[str, Any]:
    return {
        "threads": options.threads,
        "replicate_s": replicate_s(options),
        "replicates": max(FEWEST_REPLICATES, options.replicates // 2),
        "allowed": dict(options.allowed),
    }


def _told(name: str, task: Task, folder: Path, place: int) -> dict[str, Any]:
    """A task as JSON; its tokens are written beside."""
    inputs: dict[str, Any] = dict(task.workload.evaluation)
    np.savez(folder / f"{place}.npz", **inputs)
    built = task.built
    return {
        "name": name,
        "backend": built.backend,
        "known": {name: getattr(task.known, name) for name in ("target", "gpu", "at_once")},
        "engine": _engine(built),
        "control": _engine(task.control) if task.control else None,
        "onnx": str(task.model.onnx),
        "output": task.model.output,
        "batches": list(task.batches),
        "inputs": str(folder / f"{place}.npz"),
        "widths": _widths(task.workload),
        "largest_batch": task.workload.largest_batch,
    }


def _widths(workload: Workload) -> dict[str, Any] | None:
    """Tokens of each row, and the side of its padding; None where all have one length."""
    batch = workload.evaluation
    return {"of": batch.widths, "left": batch.left} if isinstance(batch, Bucketed) else None


def _batch(task: Mapping[str, Any]) -> Batch:
    """The tokens of a task, with what `_widths` told of them."""
    with np.load(task["inputs"], allow_pickle=False) as arrays:
        batch, widths = dict(arrays), task["widths"]
    return Bucketed(batch, widths["of"], left=widths["left"]) if widths else batch


def _engine(built: Built) -> dict[str, Any]:
    entry = built.entry
    return {
        "precision": built.precision,
        "folder": str(entry.folder),
        "properties": dict(entry.properties),
    }


def _built(task: Mapping[str, Any], engine: Mapping[str, Any]) -> Built:
    """An engine of the task's backend, as it was told of."""
    precision, backend = Precision(engine["precision"]), task["backend"]
    entry = Entry(Path(engine["folder"]), engine["properties"])
    return Built(Variant(task["name"], backend, precision), precision, backend, entry)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, readable_json(value))


def _read(path: Path) -> Any:
    return parse_json(read_text(path))


def _speed(said: Mapping[str, Any]) -> Speed:
    p99_s = said["p99_s"] and tuple(said["p99_s"])
    disturbed = tuple(said["disturbed"])
    return Speed(
        **{**said, "p99_s": p99_s, "disturbed": disturbed, "change": None, "judgement": _UNJUDGED}
    )


def main(given: str) -> None:
    """Time what is asked for and write what was found."""
    folder = Path(given)
    asked = _read(folder / _ASKED)
    rules = replace(gating_rules(asked["replicates"], max_time_s=0.0), early=False)
    trial = SequentialTest(rules, time.monotonic)
    judge = SpeedJudge(trial, asked["allowed"], {})
    rng = random.Random(asked["seed"])  # noqa: S311 - placement, not secrets
    found = {task["name"]: _timed(task, asked, judge, rng) for task in asked["tasks"]}
    _write(folder / _FOUND, found)


def _timed(
    task: Mapping[str, Any], asked: Mapping[str, Any], judge: SpeedJudge, rng: random.Random
) -> list[Mapping[str, Any]]:
    threads = asked["threads"]
    register(task["backend"], **task["known"])
    built = _built(task, task["engine"])
    control = _built(task, task["control"]) if task["control"] else None
    workload = Workload("", (), _batch(task), {}, "", largest_batch=task["largest_batch"])

    def reference() -> contextlib.AbstractContextManager[Engine]:
        onnx, output = Path(task["onnx"]), task["output"]
        return contextlib.nullcontext(open_reference(onnx, output, probe_of(workload), threads))

    candidate = local_arm(functools.partial(built.load, workload, threads))
    beside = local_arm(functools.partial(control.load, workload, threads) if control else reference)
    on_gpu, at_once = arms_on_gpu(built, control), load_at_once(built, control)
    rig = rig_of(
        candidate,
        beside,
        workload,
        rng,
        asked["replicate_s"],
        on_gpu=on_gpu,
        here=not on_gpu,
        at_once=at_once,
    )
    measured = judge.judge(rig, task["batches"], Comparison({}, {}, _UNJUDGED), "")
    return [_figures(one.speed) for one in measured.values()]


def _figures(speed: Speed) -> dict[str, Any]:
    judged = ("change", "judgement", "tail_change", "tail_judgement")
    return {key: value for key, value in asdict(speed).items() if key not in judged}


if __name__ == "__main__":
    main(*sys.argv[1:])
