"""Is the layer that was spoiled among the first three that --gate-blame names?

    python benchmarks/blame.py [--cache DIR] [--model NAME] [--engine NAME] > results/blame.txt

Plants the layer faults of benchmarks/planted.py one by one in an engine and ranks its layers. In
`fp32` the spoiled layer is the only one that differs from the reference; in `fp16` every layer
does, by its rounding. In `int8` the fault is one of quantisation: OpenVINO's int8 engine, whose
weights of one layer got ranges a quarter as wide as they should be, among the damage that int8 does
anyway. The last column is the share of the damage that repairing the culprit gives back.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx_edits import weighted
from planted import faults
from planting import MODELS, Fault, Subject, subject_of, write_edited

from enginegate.diagnostics.layers.rebuild import BLAME_TEXTS, Rebuilder
from enginegate.diagnostics.layers.search import Blamed, rank
from enginegate.engines import Keeping
from enginegate.engines.graphs import keeping_in
from enginegate.engines.onnxruntime import run_onnx
from enginegate.engines.quantize import to_fp16
from enginegate.engines.quantizers import quantize
from enginegate.engines.registry import get_backend
from enginegate.machine.fingerprint import this_machine
from enginegate.models.layers import read_layers
from enginegate.models.workload import take
from enginegate.variants import Precision

ENGINES = ("fp32", "fp16", "int8")
CLIPPED = 0.25  # of the range that a quantiser should have
CLIPPED_PLACES = (5, 9, 16, 22, 28, 35)  # of the 36 multiplications by a weight
FIRST = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault in an engine.

    Attributes:
        name: in a few words.
        node: first output of the node that is wrong.
        backend: what loads the engine.
        keeping: how it is rebuilt.
    """

    name: str
    node: str
    backend: str
    keeping: Keeping


def graph_cases(
    subject: Subject, engine: str, planted: Iterable[Fault], folder: Path
) -> Iterator[Case]:
    """Faults of the ONNX file, in an fp32 or fp16 engine of it."""
    source = subject.model.onnx
    for fault in planted:
        spoiled = write_edited(fault.edit, source, folder / "edited.onnx")
        if engine == "fp16":
            to_fp16(spoiled, folder / "half.onnx")
            spoiled = folder / "half.onnx"
        keeping = keeping_in(onnx.load(str(spoiled)), source, {"output": subject.model.output})
        yield Case(fault.name, fault.layer, "onnxruntime", keeping)


def quantised_cases(subject: Subject, places: Iterable[int]) -> Iterator[Case]:
    """One layer's weights clipped by their quantiser."""
    nodes = weighted(onnx.load(str(subject.model.onnx)))
    for place in places:
        node = nodes[place].output[0]

        def spoiled(graph, calibration, node=node):
            return clipped(quantize(graph, calibration), node)

        with mock.patch("enginegate.engines.openvino.quantize", spoiled):
            backend, calibration = get_backend("openvino"), subject.workload.calibration
            keeping = backend.keeping(subject.model, Precision.INT8, calibration)
        name = f"weights of multiplication {place} clipped to {CLIPPED:g} of their range"
        yield Case(name, node, "openvino", keeping)


def clipped(graph, node: str):
    """The graph with the range of a node's weight quantiser too small."""
    from openvino import opset13

    operation = next(o for o in graph.get_ops() if o.get_output_size() and node in names_of(o))
    quantiser = operation.input_value(1).get_node()
    for place in range(1, 5):
        limit = quantiser.input_value(place).get_node().get_data()
        narrow = opset13.constant((limit * CLIPPED).astype(np.float32))
        quantiser.input(place).replace_source_output(narrow.output(0))
    return graph


def names_of(operation) -> set[str]:
    return {name for output in operation.outputs() for name in output.get_names()}


def blamed(subject: Subject, case: Case) -> tuple[tuple[Blamed, ...], float]:
    """The ranking of a case, and the seconds it took."""
    expected = run_onnx(subject.model.onnx, take(subject.workload.evaluation, slice(BLAME_TEXTS)))
    rebuilder = Rebuilder(get_backend(case.backend), case.keeping, subject.workload, threads=1)
    layers, start = read_layers(subject.model.onnx), time.monotonic()
    found = rank(layers, case.keeping.touched, rebuilder.embed, expected)
    return found, time.monotonic() - start


def line_of(subject: Subject, engine: str, case: Case) -> tuple[str, int]:
    """A line of the table, and the culprit's place in the ranking from 1; 0 where it is missing."""
    layers = read_layers(subject.model.onnx)
    culprit = next(layer.name for layer in layers if case.node in layer.nodes)
    found, seconds = blamed(subject, case)
    places: Mapping[str, int] = {blame.layer: n for n, blame in enumerate(found, 1)}
    place = places.get(culprit, 0)
    share = f"{found[place - 1].repaired_share:6.1%}" if place else "     -"
    model = subject.model.spec.name.partition("-")[0]
    first = "" if place == 1 or not found else f"  first: {found[0].layer}"
    row = f"{model:10}  {engine:4}  {case.name:52}  {culprit:32}"
    return f"{row}  {place or '-':>5}  {len(found):>5}  {share}  {seconds:5.0f} s{first}", place


def cases_of(
    subject: Subject, engine: str, folder: Path, arguments: argparse.Namespace
) -> Iterator[Case]:
    if engine == "int8":
        return quantised_cases(subject, evenly(CLIPPED_PLACES, arguments.most))
    found = [f for f in faults(subject) if f.layer is not None and arguments.fault in f.name]
    return graph_cases(subject, engine, evenly(found, arguments.most), folder)


def evenly(items: Sequence[Any], most: int | None) -> Sequence[Any]:
    """At most so many items, from all over the sequence."""
    return items[:: -(-len(items) // most)] if most else items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/enginegate")
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--most", type=int, help="faults of each engine, evenly taken")
    parser.add_argument("--fault", default="", help="only those with this in their name")
    arguments = parser.parse_args()
    print(time.strftime("%Y-%m-%d"), this_machine().cpu, f"{this_machine().cores} cores", sep=", ")
    titles = f"{'model':10}  {'in':4}  {'fault':52}  {'culprit':32}"
    print(f"{titles}  place  tried  repairs  took", flush=True)
    ranks = []
    for name in arguments.model or MODELS:
        subject = subject_of(name, arguments.cache)
        for engine in arguments.engine or ENGINES:
            with tempfile.TemporaryDirectory() as folder:
                for case in cases_of(subject, engine, Path(folder), arguments):
                    line, place = line_of(subject, engine, case)
                    ranks.append(place)
                    print(line, flush=True)
    near = sum(1 <= place <= FIRST for place in ranks)
    print(f"first: {ranks.count(1)} of {len(ranks)}; among the first {FIRST}: {near}", end=" ")
    print(f"({near / len(ranks):.0%})")


if __name__ == "__main__":
    main()
