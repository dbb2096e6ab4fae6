"""Live trials of the gate: unchanged engines, and engines that truly do more work.

    python benchmarks/trials.py record unchanged FILE --runs 30 [--neighbour]
    python benchmarks/trials.py record slower FILE [--reference]
    python benchmarks/trials.py record naive FILE

Every line of FILE is one replicate of one batch size as the gate measured it (block medians of
every arm, calls of the candidate), with the run it belongs to and the run's verdicts. The engines
are MiniLM with its real weights on OpenVINO, int8 and fp32, at batch 1 and 8; beside candidate,
yardstick and sentinel stand as in a run with --gate-against. `slower` adds matrix multiplications
inside the fp32 engine, for a slowdown of about 3, 5, 10 and 20 %; with --reference the ONNX
reference takes part in every block, for the stored comparison. benchmarks/verdicts.py makes the
tables.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enginegate.cache import Store
from enginegate.engines.build import build_engine
from enginegate.engines.onnxruntime import open_onnx, run_onnx
from enginegate.models.export import export_model, tokenize_with
from enginegate.models.spec import specs_from
from enginegate.models.workload import make_workload, read_texts, take
from enginegate.speed.arms import local_arm, open_arms
from enginegate.speed.rules import METRICS, P50, Question, Rules
from enginegate.speed.sequential import SequentialTest, judge_second_control
from enginegate.speed.stats import Anchor
from enginegate.speed.timing import CANDIDATE, CONTROL, SECOND_CONTROL, Rig
from enginegate.variants import Precision, Variant

REFERENCE = "reference"
BATCHES = (1, 8)
REPLICATES, MAX_TIME_S = 12, 60.0
REPLICATE_S = 1.0  # shared by the batch sizes of a replicate
LIMIT = 0.05
KEPT_CALLS = 40
SLOWER = (3, 5, 9, 17)  # matrix multiplications more, of 384 x 384 a token
SLOWER_REPLICATES = 40
LAST, OUTPUT = "layer_norm_12", "sentence_embedding"


class Bench:
    """MiniLM, its engines, and rigs that also watch the reference."""

    def __init__(self, cache: Path) -> None:
        self.store = Store(cache)
        self.model = export_model(specs_from({}, Path.cwd())["minilm"], self.store, run_onnx)
        tokenize = tokenize_with(self.model)
        self.workload = make_workload(*read_texts(None), tokenize, self.model.inputs)

    def build(self, precision: str, model=None):
        """An OpenVINO engine."""
        variant = Variant("minilm", "openvino", Precision(precision))
        return build_engine(self.store, variant, model or self.model, self.workload)

    def with_more_work(self, multiplications: int):
        """The model with so many more matrix multiplications of every token."""
        path = self.store.root / f"slower-{multiplications}.onnx"
        add_work(self.model.onnx, path, multiplications)
        return dataclasses.replace(self.model, onnx=path, sha256=f"slower {multiplications}")

    def rig(
        self, candidate, yardstick, rng, *, watched: bool = False, replicate_s=REPLICATE_S
    ) -> Rig:
        """What times an engine beside another, and beside the reference if that is watched."""

        @contextlib.contextmanager
        def reference():
            probe = take(self.workload.evaluation, slice(2))
            yield open_onnx(self.model.onnx, self.model.output, probe, 1)

        openers = {
            CANDIDATE: local_arm(lambda: candidate.load(self.workload, 1)),
            CONTROL: local_arm(lambda: yardstick.load(self.workload, 1)),
            SECOND_CONTROL: local_arm(lambda: yardstick.load(self.workload, 1)),
        }
        if watched:
            openers[REFERENCE] = local_arm(reference)
        return Rig(
            functools.partial(open_arms, openers, self.workload, at_once=True), replicate_s, rng
        )


def add_work(source: Path, target: Path, multiplications: int) -> None:
    """Write a copy of a model that multiplies its last hidden state so many more times."""
    graph = (model := onnx.load(str(source))).graph
    width = 384
    weight = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "more_weight"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-30), "more_scale"))
    name = LAST
    for index in range(multiplications):
        graph.node.append(helper.make_node("MatMul", [name, "more_weight"], [f"more_{index}"]))
        name = f"more_{index}"
    axes = numpy_helper.from_array(np.array([1], np.int64), "more_axes")
    graph.initializer.append(axes)
    for node in graph.node:
        node.output[:] = ["plain_embedding" if o == OUTPUT else o for o in node.output]
    graph.node.extend(
        [
            helper.make_node("ReduceMean", [name, "more_axes"], ["more_mean"], keepdims=0),
            helper.make_node("Mul", ["more_mean", "more_scale"], ["more_nothing"]),
            helper.make_node("Add", ["plain_embedding", "more_nothing"], [OUTPUT]),
        ]
    )
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    onnx.save(model, str(target))


def record_unchanged(bench: Bench, out: Path, runs: int, condition: str, first: int) -> None:
    """Suite runs of unchanged engines, judged live as a gated run with --gate-against would."""
    for run in range(first, first + runs):
        for labels, seen in suite_run(bench, run):
            labels |= {"run": run, "condition": condition}
            write(out, [labels | line for line in seen])
            print(labels, flush=True)


def suite_run(bench: Bench, seed: int) -> Iterator[tuple[dict, list[dict]]]:
    """One suite run: the verdicts and the replicates of each variant."""
    rng = random.Random(seed)
    trial = SequentialTest(Rules(REPLICATES, MAX_TIME_S, 0.01, 0.05), time.monotonic)
    for precision in ("int8", "fp32"):
        engine, start = bench.build(precision), time.monotonic()
        seen: list[dict] = []
        measure = recorder(bench.rig(engine, engine, rng), seen)
        questions = {(b, m): Question(Anchor(), LIMIT) for b in BATCHES for m in METRICS}
        outcome = trial.run(measure, BATCHES, questions)
        sentinel = [v for s in outcome.samples.values() for v in s.sentinel_log_ratios]
        said = {str(b): str(outcome.findings[b, P50].judgement.verdict) for b in BATCHES}
        labels = {
            "variant": precision,
            "verdicts": said,
            "invalid": judge_second_control(sentinel, LIMIT),
        }
        yield labels | {"elapsed_s": round(time.monotonic() - start, 2)}, seen


def judged_live(bench: Bench, seed: int) -> list[str]:
    """The verdict of every cell of one suite run."""
    runs = [labels for labels, _ in suite_run(bench, seed)]
    return [v for found in runs for v in invalid_or(found)]


def invalid_or(labels: dict) -> list[str]:
    said = list(labels["verdicts"].values())
    return ["invalid"] * len(said) if labels["invalid"] else said


def record_slower(bench: Bench, out: Path, replicates: int, *, watched: bool) -> None:
    """Replicates of slower fp32 engines beside the unchanged one, one batch size at a time."""
    plain = bench.build("fp32")
    slower = [bench.build("fp32", bench.with_more_work(n)) for n in SLOWER]
    rng = random.Random(1)
    cells = list(itertools.product(zip((0, *SLOWER), (plain, *slower), strict=True), BATCHES))
    for index, ((more, engine), batch) in itertools.product(range(replicates), cells):
        start = time.monotonic()
        seen: list[dict] = []
        rig = bench.rig(engine, plain, rng, watched=watched, replicate_s=REPLICATE_S / 2)
        recorder(rig, seen)([batch])
        labels = {"run": index, "more": more, "elapsed_s": round(time.monotonic() - start, 3)}
        write(out, [labels | line for line in seen])


def record_naive(bench: Bench, out: Path, instances: int) -> None:
    """Naive pairing: two copies loaded one after the other, single calls in turn, no settling."""
    for precision in ("int8", "fp32"):
        engine = bench.build(precision)
        for index in range(instances):
            with engine.load(bench.workload, 1) as first, engine.load(bench.workload, 1) as second:
                for batch in BATCHES:
                    inputs = bench.workload.batch(batch)
                    pairs = [(timed(second, inputs), timed(first, inputs)) for _ in range(60)][10:]
                    blocks = {CANDIDATE: [p[0] for p in pairs], CONTROL: [p[1] for p in pairs]}
                    labels = {"run": index, "variant": precision, "batch": batch}
                    write(out, [labels | {"blocks": blocks}])


def timed(engine, inputs) -> float:
    start = time.perf_counter()
    engine.embed(inputs)
    return time.perf_counter() - start


def recorder(rig: Rig, seen: list[dict]):
    """The rig's replicates, each noted down in `seen`."""

    def measure(batches):
        found = rig.replicate(batches)
        for batch, replicate in found.items():
            arms = replicate.blocks[0].turns
            seen.append(
                {
                    "batch": batch,
                    "blocks": {
                        arm: [float(f"{b.seconds(arm):.5g}") for b in replicate.blocks]
                        for arm in arms
                    },
                    "calls": [float(f"{s:.4g}") for s in replicate.calls(CANDIDATE)[:KEPT_CALLS]],
                    "disturbed": sum(bool(b.disturbance) for b in replicate.blocks),
                }
            )
        return found

    return measure


def write(out: Path, lines: list[dict]) -> None:
    with out.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["record"])
    parser.add_argument("what", choices=["unchanged", "slower", "naive"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--replicates", type=int, default=SLOWER_REPLICATES)
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--reference", action="store_true", help="with slower: watch it as well")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/enginegate").expanduser())
    given = parser.parse_args()
    bench = Bench(given.cache)
    noise = [sys.executable, str(Path(__file__).with_name("neighbour.py"))]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    busy = subprocess.Popen(noise, env=environment) if given.neighbour else None
    try:
        if given.what == "slower":
            record_slower(bench, given.file, given.replicates, watched=given.reference)
        elif given.what == "naive":
            record_naive(bench, given.file, given.replicates)
        else:
            condition = "neighbour" if given.neighbour else "quiet"
            record_unchanged(bench, given.file, given.runs, condition, given.first)
    finally:
        if busy:
            busy.kill()


if __name__ == "__main__":
    main()
