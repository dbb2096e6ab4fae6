"""Measuring the numbers inside a graph: the model with measures of its values for outputs."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginegate.engines.half import MOVES, HalfGraph, read_half_graph
from enginegate.engines.onnxruntime import session_of
from enginegate.engines.ranges import ValueRange
from enginegate.files import scratch_folder
from enginegate.models import Batch, chunks

_ROWS = 16
_TO_ZERO = np.float32(2.0**-25)  # the largest that is rounded to zero
_BOUNDED = frozenset({"Softmax", "Sigmoid"})  # what they make small, is small beside one
_SHIFTED = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub", "Where"}) | MOVES
_CUT = frozenset({"Clip", "Max", "Min"})
_NOTHING, _VANISHES = "ranges/nothing", "ranges/vanishes"
_JOINS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "/lowest": lambda runs: runs.min(axis=0),
        "/highest": lambda runs: runs.max(axis=0),
        "/nonzero": lambda runs: runs.sum(axis=0),
        "/held": lambda runs: runs.sum(axis=0),
    }
)  # measures of a value, and how those of several batches become one


def measured_ranges(path: Path, batch: Batch) -> tuple[ValueRange, ...]:
    """The numbers of every value and weight that an fp16 engine of the file has in fp16."""
    graph = read_half_graph(path)
    probes = tuple(_probes(graph))
    halves, masked, weights = graph.halves, _masked(graph), tuple(_weights(graph))
    sums = _measured(graph, [name for name, _, _ in probes], batch)
    values = (
        _value(node, takers, sums[name], made=node.output[0] in halves, masks=name in masked)
        for name, node, takers in probes
    )
    return (*weights, *values)


def _probes(graph: HalfGraph) -> Iterator[tuple[str, NodeProto, tuple[str, ...]]]:
    """Values that are in fp16 where they are made or taken: name, maker, takers in fp16."""
    for node in graph.nodes:
        half = node.output[0] in graph.halves
        for name in node.output:
            if name not in graph.floats or (half and node.op_type in MOVES):
                continue
            takers = tuple(dict.fromkeys(_takers(graph, name)))
            if half or takers:
                yield name, node, takers


def _takers(graph: HalfGraph, name: str) -> Iterator[str]:
    """First outputs of the nodes that take a value in fp16, and of those that take it moved."""
    for node in graph.consumers.get(name, ()):
        if node.output[0] in graph.halves:
            yield node.output[0]
            if node.op_type in MOVES:
                yield from (taker for moved in node.output for taker in _takers(graph, moved))


def _value(
    node: NodeProto,
    takers: tuple[str, ...],
    sums: Mapping[str, float],
    *,
    made: bool,
    masks: bool,
) -> ValueRange:
    lowest, highest = (_finite(sums[end]) for end in ("/lowest", "/highest"))
    lost = 1 - sums["/held"] / max(sums["/nonzero"], 1)
    bounded = node.op_type in _BOUNDED or not sums["/nonzero"]
    return ValueRange(
        node=node.output[0],
        kind=node.op_type,
        made=made,
        takers=takers,
        lowest=0.0 if masks else lowest,
        highest=highest,
        lost_share=0.0 if bounded else lost,
    )


def _finite(number: float) -> float:
    """The number; 0 for what is infinite in fp32 already, as masks are."""
    return number if math.isfinite(number) else 0.0


def _weights(graph: HalfGraph) -> Iterator[ValueRange]:
    """The weights that nodes in fp16 take, but for what masks and for the limits of what cuts."""
    masked = _masked(graph)
    for name, tensor in graph.weights.items():
        takers = [n for n in graph.consumers.get(name, ()) if n.output[0] in graph.halves]
        if any(n.op_type not in _CUT and n.output[0] not in masked for n in takers):
            values = numpy_helper.to_array(tensor)
            finite = values[np.isfinite(values)]
            if finite.size:
                yield _weight(name, tuple(node.output[0] for node in takers), finite)


def _weight(name: str, takers: tuple[str, ...], values: Any) -> ValueRange:
    nonzero = int(np.count_nonzero(values))
    held = int(np.count_nonzero(np.abs(values) > _TO_ZERO))
    return ValueRange(
        node=name,
        kind="weight",
        made=False,
        takers=takers,
        lowest=float(values.min()),
        highest=float(values.max()),
        lost_share=(nonzero - held) / max(nonzero, 1),
    )


def _masked(graph: HalfGraph) -> frozenset[str]:
    """Values that go into a Softmax only: there, as low as fp16 goes is as good as lower."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        for name in node.output:
            takers = graph.consumers.get(name, ())
            if takers and all(_only_masks(taker, found) for taker in takers):
                found.add(name)
    return frozenset(found)


def _only_masks(taker: NodeProto, masked: Collection[str]) -> bool:
    if taker.op_type == "Softmax":
        return True
    return taker.op_type in _SHIFTED and all(name in masked for name in taker.output)


def _measured(
    graph: HalfGraph, names: Sequence[str], batch: Batch
) -> Mapping[str, Mapping[str, float]]:
    """Measures of each value over all texts, a few at a time. Uses the graph up."""
    if not names:
        return {}
    with scratch_folder() as folder:
        path = folder / "probed.onnx"
        _write_probed(graph.model, names, path)
        session = session_of(path, threads=1)
        wanted = [f"{name}{end}" for end in _JOINS for name in names]
        parts = chunks({i.name: batch[i.name] for i in session.get_inputs()}, _ROWS)
        runs = np.array([session.run(wanted, dict(part)) for part in parts], dtype=np.float64)
    ends = np.split(runs, len(_JOINS), axis=1)
    joined = [join(part) for join, part in zip(_JOINS.values(), ends, strict=True)]
    return {
        name: dict(zip(_JOINS, map(float, measures), strict=True))
        for name, *measures in zip(names, *joined, strict=True)
    }


def _write_probed(model: ModelProto, names: Sequence[str], path: Path) -> None:
    """Write the model with measures of the values as its outputs."""
    limits = {_NOTHING: 0.0, _VANISHES: float(_TO_ZERO)}
    tensors = (numpy_helper.from_array(np.array(v, np.float32), name) for name, v in limits.items())
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(node for name in names for node in _probe(name))
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(f"{name}{end}", TensorProto.FLOAT, [])
        for end in _JOINS
        for name in names
    )
    onnx.save(model, str(path), save_as_external_data=True, location="weights", size_threshold=1024)


def _probe(name: str) -> Iterator[NodeProto]:
    """Nodes that reduce a value to its measures."""
    size = f"{name}/size"
    yield helper.make_node("ReduceMin", [name], [f"{name}/lowest"], keepdims=0)
    yield helper.make_node("ReduceMax", [name], [f"{name}/highest"], keepdims=0)
    yield helper.make_node("Abs", [name], [size])
    for end, limit in (("/nonzero", _NOTHING), ("/held", _VANISHES)):
        more, counted = f"{name}{end}/more", f"{name}{end}/counted"
        yield helper.make_node("Greater", [size, limit], [more])
        yield helper.make_node("Cast", [more], [counted], to=TensorProto.FLOAT)
        yield helper.make_node("ReduceSum", [counted], [f"{name}{end}"], keepdims=0)
