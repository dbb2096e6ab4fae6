"""How much of int8's lost recall@10 comes back with layers kept, and how much speed is left?

    python benchmarks/repair.py rank FILE [--cache DIR]     # ranks the layers, a minute or two
    python benchmarks/repair.py measure FILE [--cache DIR]  # on a quiet machine; prints the table

The engine is MiniLM with its real weights, int8 on OpenVINO, one thread, judged on the 256 default
texts: the ten nearest of each among the others, against the reference's. Layers are kept in fp32 in
the order of their worth, as --gate-repair keeps them. Recall back is (recall - int8's) / (1 -
int8's). Speed is of batch 8, all engines in random turns, best of four calls, median of the rounds.
Speed-up is the time of OpenVINO's fp32 engine / the engine's; speed-up kept is relative to int8's.
The rows `bf16` keep the layers in bf16 instead, which the plugin does not offer; whole engines in
fp32 and bf16 stand below.
"""

import argparse
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from planting import MINILM, Subject, subject_of

from enginegate.accuracy.bootstrap import mean_interval
from enginegate.accuracy.retrieval import Vectors, recall, similarities
from enginegate.diagnostics.layers.rebuild import BLAME_TEXTS, Rebuilder
from enginegate.diagnostics.layers.search import by_worth, embedding_error, rank
from enginegate.engines import Engine
from enginegate.engines.api import embed_all
from enginegate.engines.registry import get_backend
from enginegate.files import readable_json
from enginegate.machine.fingerprint import this_machine
from enginegate.models.layers import nodes_of, read_layers
from enginegate.models.workload import take
from enginegate.variants import Precision

NEAR = 10
SIZES = (0, 1, 2, 4, 6, 8, 10, 14, 20, 28, 36)
IN_BF16 = (8, 14, 28)
BATCH, ROUNDS, CALLS = 8, 15, 4
WANTED_BACK, WANTED_SPEED = 0.9, 0.8
HINTS = "enginegate.engines.openvino._HINTS"


@dataclass(frozen=True)
class Row:
    """An engine of the table: how it is called, its damage, its recall per query, its call."""

    name: str
    damage: float
    recall: np.ndarray
    call_s: float


def rank_layers(subject: Subject, file: Path) -> None:
    """Write the layers in the order of their worth."""
    backend, start = get_backend("openvino"), time.monotonic()
    keeping = backend.keeping(subject.model, Precision.INT8, subject.workload.calibration)
    rebuilder = Rebuilder(backend, keeping, subject.workload, subject.threads)
    layers, expected = read_layers(subject.model.onnx), subject.expected()[:BLAME_TEXTS]
    blamed = rank(layers, keeping.touched, rebuilder.embed, expected, every=True)
    whole = embedding_error(rebuilder.embed(frozenset()), expected)
    order = [layer.name for layer in by_worth(layers, blamed, whole)]
    names = {found.layer for found in blamed}
    rest = [layer.name for layer in layers if layer.name in names and layer.name not in order]
    file.write_text(readable_json({"order": order + rest, "took_s": time.monotonic() - start}))
    print(f"ranked {len(blamed)} layers in {time.monotonic() - start:.0f} s")


@contextlib.contextmanager
def engines(subject: Subject, order: Sequence[str]) -> Iterator[dict[str, Engine]]:
    """Every engine of the table, loaded."""
    backend, workload = get_backend("openvino"), subject.workload
    keeping = backend.keeping(subject.model, Precision.INT8, workload.calibration)
    layers = {layer.name: layer for layer in read_layers(subject.model.onnx)}

    def kept(size: int, folder: Path) -> Mapping[str, Any]:
        return keeping.build(nodes_of(layers[name] for name in order[:size]), folder)

    def whole(precision: Precision, folder: Path) -> Mapping[str, Any]:
        return backend.build(subject.model, precision, workload.calibration, folder)

    with contextlib.ExitStack() as stack:

        def load(build, what) -> Engine:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            properties = build(what, folder)
            probe = take(workload.evaluation, slice(2))
            return stack.enter_context(backend.load(folder, properties, probe, subject.threads))

        sizes = sorted({*(size for size in SIZES if size < len(order)), len(order)})
        found = {f"{size:2} of {len(order)} kept in f32": load(kept, size) for size in sizes}
        with mock.patch(HINTS, {Precision.INT8: "bf16"}):
            found |= {f"{s:2} of {len(order)} kept in bf16": load(kept, s) for s in IN_BF16}
        found |= {f"whole engine {p}": load(whole, p) for p in (Precision.FP32, Precision.BF16)}
        yield found


def measure(subject: Subject, file: Path) -> list[Row]:
    """Recall and time of every engine; the times of all in turn."""
    expected, order = subject.expected(), json.loads(file.read_text())["order"]
    wanted = similarities(Vectors(expected))
    batch = subject.workload.batch(BATCH)
    with engines(subject, order) as loaded:
        found = {n: embed_all(engine, subject.workload.evaluation) for n, engine in loaded.items()}
        turns: dict[str, list[float]] = {name: [] for name in loaded}
        rng = random.Random(0)
        for _ in range(ROUNDS):
            for name in rng.sample(list(loaded), len(loaded)):
                engine = loaded[name]
                _call_s(engine, batch)  # settles its caches
                turns[name].append(min(_call_s(engine, batch) for _ in range(CALLS)))
    return [
        Row(
            name,
            embedding_error(vectors, expected),
            recall(similarities(Vectors(vectors)), wanted, NEAR),
            float(np.median(turns[name])),
        )
        for name, vectors in found.items()
    ]


def _call_s(engine: Engine, batch) -> float:
    start = time.perf_counter()
    engine.embed(batch)
    return time.perf_counter() - start


def lines_of(rows: Sequence[Row]) -> Iterator[str]:
    """The table, and whether any engine has both."""
    int8, fp32 = rows[0], next(row for row in rows if row.name == "whole engine fp32")
    lost, reached = 1 - int8.recall.mean(), []
    yield f"{'engine':24}  damage   recall@10              back    ms     x fp32  speed-up kept"
    for row in rows:
        interval = mean_interval(row.recall)
        back, speedup = 1 - (1 - row.recall.mean()) / lost, fp32.call_s / row.call_s
        kept = row.call_s and int8.call_s / row.call_s
        reached += [row.name] if back >= WANTED_BACK and kept >= WANTED_SPEED else []
        yield (
            f"{row.name:24}  {row.damage:.1e}  {interval.value:.4f} "
            f"({interval.low:.4f}-{interval.high:.4f})  {back:6.1%}  {1000 * row.call_s:5.1f}  "
            f"{speedup:5.2f}  {kept:6.1%}"
        )
    wanted = f"{WANTED_BACK:.0%} of the lost recall@10 back with {WANTED_SPEED:.0%} of the speed-up"
    yield f"{wanted}: {', '.join(reached) or 'no engine of these'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rank", "measure"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/enginegate")
    arguments = parser.parse_args()
    subject = subject_of(MINILM, arguments.cache)
    if arguments.what == "rank":
        rank_layers(subject, arguments.file)
        return
    start = time.monotonic()
    rows = measure(subject, arguments.file)
    print(time.strftime("%Y-%m-%d"), this_machine().cpu, f"{this_machine().cores} cores", sep=", ")
    print("\n".join(lines_of(rows)))
    print(f"measured in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
