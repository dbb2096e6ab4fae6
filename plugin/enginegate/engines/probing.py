"""Measuring the numbers inside a graph: the model with measures of its values for outputs."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginegate.engines.half import MOVES, HalfGraph, read_half_graph, with_nodes
from enginegate.engines.onnxruntime import session_of
from enginegate.engines.ranges import ValueRange
from enginegate.files import scratch_folder
from enginegate.models import (
    Batch,
    chunks,
    parts_of_weight,
    save_with_weights,
    stored_weights,
    with_inputs,
)

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


@dataclass(frozen=True)
class _Probe:
    """A value that is in fp16 where it is made or taken; holds nothing of the graph.

    Attributes:
        name: of the value.
        node: first output of its maker.
        kind: of its maker.
        takers: first outputs of the nodes that take it in fp16.
        made: in fp16.
        masks: it goes into a Softmax only.
    """

    name: str
    node: str
    kind: str
    takers: tuple[str, ...]
    made: bool
    masks: bool


def measured_ranges(path: Path, batch: Batch) -> tuple[ValueRange, ...]:
    """The numbers of every value and weight that an fp16 engine of the file has in fp16.

    The file is never in memory twice: what was read is let go before the probed copy runs.
    """
    with scratch_folder() as folder:
        probed = folder / "probed.onnx"
        weights, probes = _write_probed(path, probed)
        sums = _measured(probed, [probe.name for probe in probes], batch)
    return (*weights, *(_value(probe, sums[probe.name]) for probe in probes))


def _probes(graph: HalfGraph) -> Iterator[_Probe]:
    masked = _masked(graph)
    for node in graph.nodes:
        first, half = node.output[0], node.output[0] in graph.halves
        for name in node.output:
            if name not in graph.floats or (half and node.op_type in MOVES):
                continue
            takers = tuple(dict.fromkeys(_takers(graph, name)))
            if half or takers:
                yield _Probe(name, first, node.op_type, takers, made=half, masks=name in masked)


def _takers(graph: HalfGraph, name: str) -> Iterator[str]:
    """First outputs of the nodes that take a value in fp16, and of those that take it moved."""
    for node in graph.consumers.get(name, ()):
        if node.output[0] in graph.halves:
            yield node.output[0]
            if node.op_type in MOVES:
                yield from (taker for moved in node.output for taker in _takers(graph, moved))


def _value(probe: _Probe, sums: Mapping[str, float]) -> ValueRange:
    lowest, highest = (_finite(sums[end]) for end in ("/lowest", "/highest"))
    lost = 1 - sums["/held"] / max(sums["/nonzero"], 1)
    bounded = probe.kind in _BOUNDED or not sums["/nonzero"]
    return ValueRange(
        node=probe.node,
        kind=probe.kind,
        made=probe.made,
        takers=probe.takers,
        lowest=0.0 if probe.masks else lowest,
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
            values = parts_of_weight(tensor, graph.folder)
            yield from _weight(name, tuple(node.output[0] for node in takers), values)


def _weight(name: str, takers: tuple[str, ...], parts: Iterable[Any]) -> Iterator[ValueRange]:
    """The numbers of a weight, given in parts; nothing if none of them is finite."""
    finite = (part[np.isfinite(part)] for part in parts)
    measures = [_ends_and_counts(part) for part in finite if part.size]
    if not measures:
        return
    lowest, highest, nonzero, held = zip(*measures, strict=True)
    yield ValueRange(
        node=name,
        kind="weight",
        made=False,
        takers=takers,
        lowest=min(lowest),
        highest=max(highest),
        lost_share=(sum(nonzero) - sum(held)) / max(sum(nonzero), 1),
    )


def _ends_and_counts(values: Any) -> tuple[float, float, int, int]:
    """Lowest, highest, how many are not zero, and how many fp16 does not make zero."""
    held = np.count_nonzero(np.abs(values) > _TO_ZERO)
    return float(values.min()), float(values.max()), int(np.count_nonzero(values)), int(held)


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


def _write_probed(path: Path, target: Path) -> tuple[tuple[ValueRange, ...], tuple[_Probe, ...]]:
    """Write the file with measures of its values as its outputs; return weights and probes."""
    graph = read_half_graph(path)
    weights, probes = tuple(_weights(graph)), tuple(_probes(graph))
    model = with_nodes(graph.model, graph.nodes)
    stored = [*stored_weights(graph.model, graph.folder), *_limits()]
    _add_measures(model, [probe.name for probe in probes])
    save_with_weights(model, stored, target, outside=True)
    return weights, probes


def _measured(
    probed: Path, names: Sequence[str], batch: Batch
) -> Mapping[str, Mapping[str, float]]:
    """Measures of each value over all texts, a few at a time."""
    if not names:
        return {}
    session = session_of(probed, threads=1)
    wanted = [f"{name}{end}" for end in _JOINS for name in names]
    parts = chunks(with_inputs(batch, [i.name for i in session.get_inputs()]), _ROWS)
    runs = np.array([session.run(wanted, dict(part)) for part in parts], dtype=np.float64)
    ends = np.split(runs, len(_JOINS), axis=1)
    joined = [join(part) for join, part in zip(_JOINS.values(), ends, strict=True)]
    return {
        name: dict(zip(_JOINS, map(float, measures), strict=True))
        for name, *measures in zip(names, *joined, strict=True)
    }


def _limits() -> Iterator[TensorProto]:
    """What the measures compare with."""
    for name, limit in ((_NOTHING, 0.0), (_VANISHES, float(_TO_ZERO))):
        yield numpy_helper.from_array(np.array(limit, np.float32), name)


def _add_measures(model: ModelProto, names: Sequence[str]) -> None:
    """Make measures of the values the outputs of the model."""
    model.graph.node.extend(node for name in names for node in _measures_of(name))
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(f"{name}{end}", TensorProto.FLOAT, [])
        for end in _JOINS
        for name in names
    )


def _measures_of(name: str) -> Iterator[NodeProto]:
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
