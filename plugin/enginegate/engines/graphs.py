"""Layers of one ONNX graph put into another that was converted from it.

Conversions (fp16, Q/DQ) keep the name of a node's output, so the nodes of both graphs are matched
by the name of their first output.
"""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginegate.engines.api import ONNX_FILE, Keeping
from enginegate.engines.half import gather_constants
from enginegate.engines.halving import ROUNDING
from enginegate.errors import EngineError
from enginegate.models import save_onnx, typed

_VALUE, _WEIGHT = "kept/", "kept/weight/"  # before the names of what was put in
Weights = Mapping[str, TensorProto]
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Pair:
    """A graph and the fp32 one that it was converted from.

    Attributes:
        graph: the converted one.
        source: the fp32 one.
    """

    graph: ModelProto
    source: ModelProto

    @functools.cached_property
    def _nodes(self) -> Mapping[str, NodeProto]:
        return {node.output[0]: node for node in self.graph.graph.node}

    @functools.cached_property
    def _weights(self) -> Weights:
        return _weights(self.source)

    @functools.cached_property
    def _halves(self) -> Mapping[str, int]:
        """Values that the graph holds in half precision or rounded to it, with that type."""
        rounded = {name: self._typed[half] for name, half in self._rounded.items()}
        return {**self._typed, **rounded}

    @functools.cached_property
    def _typed(self) -> Mapping[str, int]:
        """Values that the graph holds in half precision, with their types."""
        values = typed(self.graph).graph.value_info
        types: dict[str, int] = {v.name: v.type.tensor_type.elem_type for v in values}
        return {name: kind for name, kind in types.items() if kind in _HALVES}

    @functools.cached_property
    def _rounded(self) -> Mapping[str, str]:
        """Values of fp32 that were rounded to half precision, with those in that precision."""
        casts = (node for node in self.graph.graph.node if node.op_type == "Cast")
        sources = {node.output[0]: node.input[0] for node in casts}
        return {n: half for n, half in sources.items() if half in sources and half in self._typed}

    @functools.cached_property
    def changed(self) -> frozenset[str]:
        """The nodes that the graph has and does otherwise than its source."""
        weights = (_weights(self.graph), self._weights)
        return frozenset(
            node.output[0]
            for node in self.source.graph.node
            if node.output[0] in self._nodes
            and (
                node.output[0] in self._halves
                or not _same(self._nodes[node.output[0]], node, weights)
            )
        )

    def substituted(self, nodes: Collection[str]) -> ModelProto:
        """The graph with the named nodes as the source has them, in fp32, with their weights.

        In a graph of half precision, values are cast on the way in and out, but not between two
        nodes that were put in. Names that the graph does not have are left out. Raises EngineError
        where a node's input is not in the graph.
        """
        sources = {n.output[0]: n for n in self.source.graph.node if n.output[0] in nodes}
        put_in = {name: node for name, node in sources.items() if name in self._nodes}
        put_in |= self._unrounded(put_in)
        result = _untyped(self.graph)
        del result.graph.node[:]
        for node in self.graph.graph.node:
            own = put_in.get(node.output[0])
            result.graph.node.extend([node] if own is None else self._inserted(own, put_in))
        names = {name for node in put_in.values() for name in node.input}
        weights = [self._weights[name] for name in sorted(names & self._weights.keys())]
        result.graph.initializer.extend(map(_renamed, weights))
        return result

    def _unrounded(self, put_in: Collection[str]) -> Mapping[str, NodeProto]:
        """Nodes of fp32 anyway that take rounded values which are put in: they take exact ones."""
        if not self._rounded:
            return {}
        exact = self._halves.keys() & set(put_in)
        nodes = (node for node in self.source.graph.node if not exact.isdisjoint(node.input))
        return {n.output[0]: n for n in nodes if n.output[0] not in self._halves}

    def _inserted(self, source: NodeProto, put_in: Collection[str]) -> Iterator[NodeProto]:
        """A node of the source under the graph's names, with the casts that it needs."""
        node = NodeProto()
        node.CopyFrom(source)
        output = source.output[0]
        node.name = _VALUE + (source.name or output)  # the converted node may live on, unused
        for index, name in enumerate(source.input):
            if name in self._weights:
                node.input[index] = _WEIGHT + name
            elif name in self._halves and name in put_in:
                node.input[index] = _VALUE + name
            elif name in self._halves:
                node.input[index] = f"{_VALUE}{output}/{name}"
                yield helper.make_node("Cast", [name], [node.input[index]], to=TensorProto.FLOAT)
            elif name and name not in self._values:
                raise EngineError(
                    f"layers cannot be put into this graph: it has no value {name} for {output}; "
                    "build the engine from the model's own ONNX file"
                )
        if output in self._halves:
            node.output[0] = _VALUE + output
        yield node
        if output in self._halves:
            yield from self._cast_out(node.output[0], output)

    def _cast_out(self, value: str, name: str) -> Iterator[NodeProto]:
        """A value of fp32 under the name that the graph has it by, in its type or rounded."""
        kind = self._halves[name]
        if name not in self._rounded:
            yield helper.make_node("Cast", [value], [name], to=kind)
            return
        half = f"{value}/half"
        yield helper.make_node("Cast", [value], [half], f"{ROUNDING}{half}", to=kind)
        yield helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT)

    @functools.cached_property
    def _values(self) -> frozenset[str]:
        graph = self.graph.graph
        made = {name for node in graph.node for name in node.output}
        return frozenset(made | {value.name for value in graph.input})


def _untyped(graph: ModelProto) -> ModelProto:
    """A copy without the types of inner values, which a conversion may have left behind."""
    copy = ModelProto()
    copy.CopyFrom(graph)
    del copy.graph.value_info[:]
    return copy


def _weights(graph: ModelProto) -> Weights:
    return {tensor.name: tensor for tensor in graph.graph.initializer}


def _renamed(weight: TensorProto) -> TensorProto:
    renamed = TensorProto()
    renamed.CopyFrom(weight)
    renamed.name = _WEIGHT + weight.name
    return renamed


def _same(ours: NodeProto, theirs: NodeProto, weights: tuple[Weights, Weights]) -> bool:
    """Tell if two nodes do the same with the same inputs."""
    if ours.op_type != theirs.op_type or len(ours.input) != len(theirs.input):
        return False
    if _attributes(ours.attribute) != _attributes(theirs.attribute):
        return False
    pairs = zip(ours.input, theirs.input, strict=True)
    return all(_same_input(a, b, *weights) for a, b in pairs)


def _attributes(attributes: Sequence[AttributeProto]) -> list[bytes]:
    return sorted(attribute.SerializeToString(deterministic=True) for attribute in attributes)


def _same_input(ours: str, theirs: str, our_weights: Weights, their_weights: Weights) -> bool:
    if ours not in our_weights or theirs not in their_weights:
        return ours == theirs
    a, b = (numpy_helper.to_array(t) for t in (our_weights[ours], their_weights[theirs]))
    return a.dtype == b.dtype and np.array_equal(a, b)


def keeping_in_file(folder: Path, source: Path, properties: Mapping[str, Any]) -> Keeping:
    """The engine of a folder, an ONNX file, with nodes of the model's own file put back."""
    own = onnx.load(str(source))
    gather_constants(own)  # a conversion may have made weights of them
    pair = Pair(onnx.load(str(folder / ONNX_FILE)), own)

    def build(nodes: frozenset[str], folder: Path) -> Mapping[str, Any]:
        save_onnx(pair.substituted(nodes), folder / ONNX_FILE)
        return properties

    return Keeping(pair.changed, build)
