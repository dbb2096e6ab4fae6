"""Where the spread of A/A log ratios comes from: block, instance, process, build, session.

    python benchmarks/variance.py collect FILE [--sessions N] [--neighbour]
    python benchmarks/variance.py analyse FILE...

`collect` loads two copies of one engine and two of the reference again and again (sessions of
builds of processes of instances), times them and two fixed kernels in mirrored blocks (ABCD DCBA,
each turn 20 ms untimed and 20 ms timed), and writes one JSON line per instance with the seconds
per call of every block.
`analyse` splits the variance of the log ratios over the levels and prints what that means for a
budget.
"""

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CELLS = (("openvino", "int8", 1), ("openvino", "fp32", 8))
SETTLE_S, TURN_S = 0.02, 0.02
PROCESSES, INSTANCES, BLOCKS, BUILDS = 4, 3, 6, 2
PAUSE_S = 20
SINGLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def prepare(cache: Path, folder: Path) -> None:
    """Build the engines of CELLS into `cache`, and write what a worker needs into `folder`."""
    from enginegate.cache import Store
    from enginegate.engines.build import build_engine
    from enginegate.engines.onnxruntime import run_onnx
    from enginegate.models.export import export_model, tokenize_with
    from enginegate.models.spec import specs_from
    from enginegate.models.workload import make_workload, read_texts
    from enginegate.variants import Precision, Variant

    store = Store(cache)
    model = export_model(specs_from({}, Path.cwd())["minilm"], store, run_onnx)
    tokenize = tokenize_with(model)
    workload = make_workload(*read_texts(None), tokenize, model.inputs)
    engines = []
    for backend, precision, batch in CELLS:
        built = build_engine(
            store, Variant("minilm", backend, Precision(precision)), model, workload
        )
        engines.append(
            {
                "backend": built.backend,
                "folder": str(built.entry.folder),
                "properties": dict(built.entry.properties),
                "batch": batch,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "tokens.npz", **workload.evaluation)
    spec = {"engines": engines, "onnx": str(model.onnx), "output": model.output}
    (folder / "spec.json").write_text(json.dumps(spec))


def worker(folder: Path, seed: int, instances: int, blocks: int) -> None:
    """One process: print a JSON line per instance and cell."""
    spec = json.loads((folder / "spec.json").read_text())
    tokens = dict(np.load(folder / "tokens.npz"))
    rng = random.Random(seed)
    for instance in range(instances):
        for cell, engine in enumerate(spec["engines"]):
            start = time.perf_counter()
            arms, closers = load_arms(spec, engine, tokens, rng)
            load_s = time.perf_counter() - start
            times = time_blocks(arms, blocks, rng)
            for close in closers:
                close.__exit__(None, None, None)
            line = {"instance": instance, "cell": cell, "load_s": round(load_s, 3)}
            print(json.dumps(line | {"order": list(arms), "times": times}), flush=True)


def load_arms(spec, engine, tokens, rng):
    """Named calls in the (random) order in which they were loaded, heap padding in between."""
    from enginegate.engines.onnxruntime import open_onnx
    from enginegate.engines.registry import get_backend

    probe = {k: v[:2] for k, v in tokens.items()}
    padding, arms, closers = [], {}, []
    names = ["E1", "E2", "R1", "R2", "G", "S"]
    rng.shuffle(names)
    for name in names:
        padding.append(np.ones(rng.randrange(64, 1 << 20), np.uint8))
        batch = {k: placed(v[: engine["batch"]], rng) for k, v in tokens.items()}
        if name[0] == "E":
            context = get_backend(engine["backend"]).load(
                Path(engine["folder"]), engine["properties"], probe, 1
            )
            loaded = context.__enter__()
            closers.append(context)
            arms[name] = lambda e=loaded, b=batch: e.embed(b)
        elif name[0] == "R":
            loaded = open_onnx(Path(spec["onnx"]), spec["output"], probe, 1)
            arms[name] = lambda e=loaded, b=batch: e.embed(b)
        elif name == "G":
            a = np.ones((384, 384), np.float32)
            arms[name] = functools.partial(np.matmul, a, a, out=np.empty_like(a))
        else:
            a = np.ones(1 << 22, np.float32)
            arms[name] = functools.partial(np.copyto, np.empty_like(a), a)
    return arms, closers


def placed(array, rng):
    """The array at a random multiple of 64 bytes in a larger buffer."""
    room = np.empty(array.nbytes + 8192, np.uint8)
    start = 64 * rng.randrange(128)
    view = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def time_blocks(arms, blocks, rng):
    """Median seconds per call of every arm in every mirrored block."""
    for call in arms.values():
        turn(call)
    order = list(arms)
    rng.shuffle(order)
    times = {name: [] for name in arms}
    for _ in range(blocks):
        taken = {name: [] for name in arms}
        for name in order + order[::-1]:
            taken[name].append(turn(arms[name]))
        for name in arms:
            times[name].append(float(f"{np.mean(taken[name]):.5g}"))
    return times


def turn(call):
    """Median seconds of the calls of one turn, after an untimed while that warms the caches."""
    repeat(call, SETTLE_S)
    return float(np.median(repeat(call, TURN_S)))


def repeat(call, time_s):
    """Seconds of each call until `time_s` has passed."""
    taken, end = [], time.perf_counter() + time_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def collect(out: Path, sessions: int, neighbour: bool, first: int, builds: list[str]) -> None:
    """Run all levels; append to `out`."""
    noise = [sys.executable, str(Path(__file__).with_name("neighbour.py"))]
    for session in range(first, first + sessions):
        busy = subprocess.Popen(noise, env=os.environ | SINGLE) if neighbour else None
        try:
            for process in range(PROCESSES):
                for build, folder in enumerate(builds):
                    seed = 1000 * session + 10 * process + build
                    labels = {"session": session, "build": build, "process": process}
                    run_worker(out, folder, seed, labels | {"neighbour": neighbour})
        finally:
            if busy:
                busy.kill()
        time.sleep(PAUSE_S)


def run_worker(out, folder, seed, labels):
    command = [sys.executable, __file__, "worker", folder, str(seed)]
    start = time.time()
    found = subprocess.run(command, env=os.environ | SINGLE, check=True, capture_output=True)
    with out.open("a") as stream:
        for line in found.stdout.decode().splitlines():
            stream.write(json.dumps(labels | json.loads(line)) + "\n")
    print(labels, f"{time.time() - start:.1f} s", flush=True)


PAIRS = (("E1", "E2"), ("R1", "R2"), ("E1", "R1"), ("E1", "G"), ("E1", "S"))
NAMES = {"E": "engine", "R": "reference", "G": "GEMM", "S": "stream"}
LEVELS = ("session", "build", "process", "instance")


def analyse(files: list[Path]) -> None:
    """Print the spread at each level, and the mean of each session."""
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for cell, (backend, precision, batch) in enumerate(CELLS):
            mine = [row for row in rows if row["cell"] == cell]
            call_ms = 1000 * np.median([np.median(row["times"]["E1"]) for row in mine])
            print(f"{file.stem}: {backend} {precision} batch {batch}, {call_ms:.3g} ms a call")
            print("  ratio              bias   block  instance  process   build  session means")
            for a, b in PAIRS:
                print(" ", spread_line(mine, a, b))


def spread_line(rows: list[dict], a: str, b: str) -> str:
    ratios = [np.log(np.array(r["times"][a]) / np.array(r["times"][b])) for r in rows]
    values = np.array([np.median(ratio) for ratio in ratios])
    block = np.sqrt(np.mean([ratio.var(ddof=1) for ratio in ratios]))
    sessions, build, process, instance = nested(rows, values)
    name = f"{NAMES[a[0]]} / {NAMES[b[0]]}"
    bias = f"{values.mean():+7.2%}" if a[0] == b[0] else "       "
    means = ", ".join(f"{mean:+.1%}" for mean in sessions)
    parts = f"{block:6.2%}  {instance:8.2%}  {process:7.2%}  {build:6.2%}"
    return f"{name:22} {bias} {parts}  {means}"


def nested(rows: list[dict], values):
    """Session means, and standard deviations of build, process and instance.

    Moments of the nested design: the variance of group means less what the level below explains;
    0 where that is negative. `instance` includes what is left of the blocks in their median.
    """
    keys = [tuple(row[level] for level in LEVELS[:3]) for row in rows]
    within, means = {}, dict(zip([(*k, i) for i, k in enumerate(keys)], values, strict=True))
    spreads = []
    for depth in (3, 2, 1):
        groups: dict = {}
        for key, value in means.items():
            groups.setdefault(key[:depth], []).append(value)
        variance = np.mean([np.var(g, ddof=1) for g in groups.values() if len(g) > 1])
        spreads.append(np.sqrt(max(0.0, variance - within.get("error", 0.0))))
        within["error"] = variance / np.mean([len(g) for g in groups.values()])
        means = {key: np.mean(group) for key, group in groups.items()}
    instance, process, build = spreads
    return [means[key] for key in sorted(means)], build, process, instance


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["collect", "analyse"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/enginegate-variance"))
    given = parser.parse_args()
    if given.command == "analyse":
        analyse(given.files)
        return
    base = given.folder.expanduser()
    builds = [str(base / f"build{n}") for n in range(BUILDS)]
    for n, folder in enumerate(builds):
        if not Path(folder, "spec.json").exists():
            prepare(base / f"cache{n}", Path(folder))
    collect(given.files[0], given.sessions, given.neighbour, given.first, builds)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker(Path(sys.argv[2]), int(sys.argv[3]), INSTANCES, BLOCKS)
    else:
        main()
