"""Which nodes of an ONNX graph an engine computes in half precision.

Kept in fp32 is what fp16 cannot hold, or holds too roughly: sums over many values, squares, roots,
angles, and all that follows from positions alone (RoPE in fp16 is 2.0 off at 8,192 tokens); with
it what lies between such nodes, and the pooling, which begins with one.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.shape_inference import infer_shapes

from enginegate.engines.ranges import LARGEST_FP16
from enginegate.models import parts_of_weight, read_graph_of, values_of

MATMULS = ("MatMul", "Gemm")
_POSITIONS = "position_ids"
_SUMS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
_KEPT = frozenset(
    {*_SUMS, "Pow", "Sqrt", "Reciprocal", "Cos", "Sin", "CumSum", "Range", "Resize", "TopK"}
)
_POINTWISE = frozenset({"Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Where"})
MOVES = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"),
        *("Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)  # compute nothing: values that were rounded stay so
_MULTIPLY = frozenset({*MATMULS, "Attention", "Conv"})
MEASURE = frozenset({"Shape", "Size"})  # tell nothing of the values
_HUGE = 1e9  # only what masks is as far below zero
FILL = "value"  # of ConstantOfShape


@dataclass(frozen=True)
class HalfGraph:
    """A graph of fp32, read for half precision.

    Attributes:
        model: its nodes in order, constants among the initialisers, and what only masks cut to
            what fp16 can hold.
        floats: its values and weights of type float.
        folder: of its file, where weights may lie beside it.
    """

    model: ModelProto
    floats: frozenset[str]
    folder: Path

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """Its nodes in order of execution."""
        nodes: Sequence[NodeProto] = self.model.graph.node
        return nodes

    @functools.cached_property
    def weights(self) -> Mapping[str, TensorProto]:
        """Initialisers of type float."""
        return {t.name: t for t in self.model.graph.initializer if t.name in self.floats}

    @functools.cached_property
    def reading(self) -> frozenset[str]:
        """Values that depend on the texts, not on positions and sizes alone."""
        inputs = {i.name for i in self.model.graph.input if i.name != _POSITIONS}
        return _depending(self.nodes, inputs - {t.name for t in self.model.graph.initializer})

    @functools.cached_property
    def halves(self) -> frozenset[str]:
        """First outputs of the nodes that an engine computes in half precision."""
        computing = (node.output[0] for node in self.nodes if self.floats & set(node.output))
        return frozenset(computing) - self._kept

    @functools.cached_property
    def matmuls(self) -> frozenset[str]:
        """Those of them that multiply matrices."""
        nodes = (node for node in self.nodes if node.op_type in MATMULS)
        return self.halves & {node.output[0] for node in nodes}

    @functools.cached_property
    def consumers(self) -> Mapping[str, Sequence[NodeProto]]:
        """The nodes that take a value."""
        found: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                found[name].append(node)
        return found

    @functools.cached_property
    def _kept(self) -> frozenset[str]:
        """Values that are made in fp32."""
        kept: set[str] = set()
        for node in self.nodes:
            if self._is_kept(node) or self._follows(node, kept):
                kept.update(node.output)
        return frozenset(kept)

    def _is_kept(self, node: NodeProto) -> bool:
        first = node.output[0]
        return (
            node.op_type in _KEPT
            or first not in self._learned_or_read
            or not self.captured.isdisjoint(node.output)
            or any(a.HasField("g") for a in node.attribute)
            or (node.op_type == "Mul" and self._is_only_summed(first))
        )

    def _follows(self, node: NodeProto, kept: Collection[str]) -> bool:
        """Tell if a node goes on with kept values, or ends the graph with one among others."""
        if node.op_type not in _POINTWISE | MOVES:
            return False
        taken = [n for n in node.input if n in self.floats and n not in self.weights]
        some, every = any(n in kept for n in taken), all(n in kept for n in taken)
        return some and (every or node.output[0] not in self._multiplied_later)

    def _is_only_summed(self, value: str) -> bool:
        takers = self.consumers.get(value, ())
        return bool(takers) and all(node.op_type in _SUMS for node in takers)

    @functools.cached_property
    def _learned_or_read(self) -> frozenset[str]:
        """Values that depend on the texts, or on a matrix of weights."""
        matrices = {n for n, t in self.weights.items() if sum(d > 1 for d in t.dims) > 1}
        return self.reading | _depending(self.nodes, matrices)

    @functools.cached_property
    def _multiplied_later(self) -> frozenset[str]:
        """Values that a multiplication of matrices takes, or what is made of them."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type in _MULTIPLY or not found.isdisjoint(node.output):
                found.update(node.input)
        return frozenset(found)

    @functools.cached_property
    def captured(self) -> frozenset[str]:
        """Names that graphs inside of nodes use."""
        inner = (a.g for node in self.nodes for a in node.attribute if a.HasField("g"))
        return frozenset(name for graph in inner for name in _names_in(graph))


def read_half_graph(path: Path) -> HalfGraph:
    """Read an ONNX file of fp32. Weights beside it are only read as they are needed."""
    model = read_graph_of(path)
    put_in_order(model)
    gather_constants(model)
    for tensor in model.graph.initializer:
        _cut_fill(tensor, path.parent)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "ConstantOfShape" and attribute.name == FILL:
                _cut_fill(attribute.t, path.parent)
    del model.graph.value_info[:]
    return HalfGraph(model, _floats(model), path.parent)


def put_in_order(model: ModelProto) -> None:
    """Put every node after those that it needs, as ONNX wants it."""
    nodes = list(model.graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {i: [makers[n] for n in node.input if n in makers] for i, node in enumerate(nodes)}
    order = TopologicalSorter(needs).static_order()
    del model.graph.node[:]
    model.graph.node.extend(nodes[index] for index in order)


def _depending(nodes: Sequence[NodeProto], names: Collection[str]) -> frozenset[str]:
    """The names, and all values that depend on theirs."""
    found = set(names)
    for node in nodes:
        if node.op_type not in MEASURE and not found.isdisjoint(node.input):
            found.update(node.output)
    return frozenset(found)


def _names_in(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _names_in(attribute.g)
    yield from (output.name for output in graph.output)


def gather_constants(model: ModelProto) -> None:
    """Make initialisers of the nodes that hold a tensor."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        value = next((a.t for a in node.attribute if a.name == FILL and a.HasField("t")), None)
        if node.op_type != "Constant" or value is None:
            model.graph.node.append(node)
            continue
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]


def _cut_fill(tensor: TensorProto, folder: Path) -> None:
    """Cut what only masks to what fp16 can hold, as torch does: the lowest number it has."""
    if tensor.data_type != TensorProto.FLOAT:
        return
    limit = LARGEST_FP16 if math.prod(tensor.dims) == 1 else _HUGE
    parts = parts_of_weight(tensor, folder)
    if any(np.fmin.reduce(part, initial=0.0) < -limit for part in parts):
        values = values_of(tensor, folder).reshape(tensor.dims)
        fills = np.isfinite(values) & (values < -limit)
        cut = np.where(fills, np.float32(-LARGEST_FP16), values)
        tensor.CopyFrom(numpy_helper.from_array(cut, tensor.name))


def _floats(model: ModelProto) -> frozenset[str]:
    """Names of type float; of what ONNX does not infer, the results of float operands."""
    graph = infer_shapes(_skeleton(model)).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in graph.initializer}
    for node in model.graph.node:
        operands = any(types.get(name) == TensorProto.FLOAT for name in node.input)
        for name in node.output:
            types.setdefault(name, TensorProto.FLOAT if operands else TensorProto.UNDEFINED)
    return frozenset(n for n, kind in types.items() if n and kind == TensorProto.FLOAT)


def _skeleton(model: ModelProto) -> ModelProto:
    """The model without the values of its weights, which may be more than ONNX can infer by."""
    result = with_nodes(model, model.graph.node)
    for tensor in model.graph.initializer:
        bare = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        kept = bare if tensor.data_type == TensorProto.FLOAT else tensor
        result.graph.initializer.append(kept)
    return result


def with_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> ModelProto:
    """A model like this one, of other nodes and without weights."""
    graph = model.graph
    result = ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        metadata_props=model.metadata_props,
        functions=model.functions,
    )
    result.graph.name = graph.name
    result.graph.node.extend(nodes)
    result.graph.input.extend(graph.input)
    result.graph.output.extend(graph.output)
    return result
