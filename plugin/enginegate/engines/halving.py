"""Graphs in half precision: converted for a runtime that has it, or only rounded to it."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from enginegate.engines.half import FILL, MEASURE, MOVES, HalfGraph, with_nodes
from enginegate.models import Weight, parts_of_weight, save_with_weights, stored_weights

FP16, BF16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
ROUNDING = "rounding/"  # before the names of the nodes that round what follows from the texts
_DTYPES: Mapping[int, Any] = MappingProxyType({FP16: np.float16, BF16: ml_dtypes.bfloat16})


@dataclass
class _Writer:
    """Writes a graph again in which some nodes compute in half precision.

    Attributes:
        graph: what is written again.
        kind: ONNX type of the half precision.
        halves: first outputs of the nodes that compute in it.
        made: the nodes so far.
        weights: initialisers in half precision, by the name of the original.
        casts: values that were cast or rounded, by the name of the original.
    """

    graph: HalfGraph
    kind: int
    halves: frozenset[str]

    def __post_init__(self) -> None:
        self.made: list[NodeProto] = []
        self.weights: dict[str, Weight] = {}
        self.casts: dict[str, str] = {}
        self.in_half = {
            name
            for node in self.graph.nodes
            if node.output[0] in self.halves
            for name in node.output
            if name in self.graph.floats
        }

    def finished(self, target: Path) -> None:
        """Write the graph with the nodes so far, without the weights that none of them uses."""
        result = with_nodes(self.graph.model, self.made)
        used = {name for node in self.made for name in node.input} | self.graph.captured
        used |= {value.name for value in result.graph.output}
        stored = stored_weights(self.graph.model, self.graph.folder)
        kept = (weight for weight in stored if weight.name in used)
        save_with_weights(result, [*kept, *self.weights.values()], target)

    def weight(self, name: str, dtype: Any) -> str:
        """Name of a weight rounded to half precision, of the given type."""
        if name not in self.weights:
            tensor = self.graph.weights[name]
            kind = TensorProto.FLOAT if dtype == np.float32 else self.kind
            parts = functools.partial(self._halved, tensor, dtype)
            self.weights[name] = Weight(f"{name}/half", kind, tuple(tensor.dims), parts)
        return self.weights[name].name

    def _halved(self, tensor: TensorProto, dtype: Any) -> Iterator[Any]:
        """The values of a weight, rounded, a part at a time."""
        for part in parts_of_weight(tensor, self.graph.folder):
            with np.errstate(over="ignore"):
                halved = part.astype(_DTYPES[self.kind]).astype(dtype)
            yield halved

    def cast(self, name: str, to: int, suffix: str, prefix: str = "") -> str:
        """Name of a value cast to another type, once for all who take it."""
        made = f"{name}/{suffix}"
        if made not in self.casts:
            self.casts[made] = made
            self.made.append(helper.make_node("Cast", [name], [made], f"{prefix}{made}", to=to))
        return made


class _Converter(_Writer):
    """Types as an engine has them: weights stored in half precision, casts at the borders."""

    def write(self, target: Path) -> None:
        self.outputs = {value.name for value in self.graph.model.graph.output}
        for node in self.graph.nodes:
            self._add(node)
        self.finished(target)

    def _add(self, source: NodeProto) -> None:
        node, half = _copy(source), source.output[0] in self.halves
        for index, name in enumerate(source.input):
            if name in self.graph.floats and node.op_type not in MEASURE:
                node.input[index] = self._operand(name, half=half)
            elif name in self.in_half:
                node.input[index] = self._named(name)
        if half:
            _retype(node, self.kind)
            node.output[:] = [self._named(name) for name in source.output]
        self.made.append(node)
        for name in self.outputs & self.in_half & set(source.output):
            cast = [self._named(name)], [name]
            self.made.append(helper.make_node("Cast", *cast, f"{name}/out", to=TensorProto.FLOAT))

    def _named(self, name: str) -> str:
        """Name of the value in half precision; outputs of the graph keep theirs for fp32."""
        return f"{name}/in_half" if name in self.outputs and name in self.in_half else name

    def _operand(self, name: str, *, half: bool) -> str:
        if name in self.graph.weights:
            return self.weight(name, _DTYPES[self.kind]) if half else name
        if (name in self.in_half) == half:
            return self._named(name)
        if half:
            return self.cast(name, self.kind, "to_half")
        return self.cast(self._named(name), TensorProto.FLOAT, "to_f32")


class _Rounder(_Writer):
    """All in fp32, rounded where an engine would have half precision."""

    def write(self, target: Path) -> None:
        for node in self.graph.nodes:
            self._add(node)
        self.finished(target)

    def _add(self, source: NodeProto) -> None:
        if source.output[0] not in self.halves:
            self.made.append(source)
            return
        node = _copy(source)
        for index, name in enumerate(source.input):
            if name in self.graph.weights:
                node.input[index] = self.weight(name, np.float32)
            elif name in self.graph.floats - self.in_half:
                half = self.cast(name, self.kind, "to_half", self._prefix(name))
                node.input[index] = self.cast(half, TensorProto.FLOAT, "rounded")
        self.made.append(node)
        if source.op_type not in MOVES:
            for index, name in enumerate(source.output):
                if name in self.in_half:
                    node.output[index] = f"{name}/exact"
                    self._round(name)

    def _round(self, name: str) -> None:
        """The value under its own name, rounded from the exact one."""
        half = self.cast(f"{name}/exact", self.kind, "to_half", self._prefix(name))
        self.made.append(
            helper.make_node("Cast", [half], [name], f"{name}/rounded", to=TensorProto.FLOAT)
        )

    def _prefix(self, name: str) -> str:
        """Mark what must be seen at work; what depends on no text is computed before."""
        return ROUNDING if name in self.graph.reading else ""


def write_converted(graph: HalfGraph, kind: int, nodes: frozenset[str], target: Path) -> None:
    """Write the graph with these nodes in half precision; inputs and outputs keep their types."""
    _Converter(graph, kind, nodes).write(target)


def write_rounded(graph: HalfGraph, kind: int, target: Path) -> None:
    """Write the graph in fp32 with every value rounded that an engine would have in half precision.

    Operands and results are rounded, sums inside of a node are fp32's: the arithmetic of matrix
    units, which take half precision and sum in fp32. A cast there and back rounds; nothing else in
    the graph is of another type than before.
    """
    _Rounder(graph, kind, graph.halves).write(target)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _retype(node: NodeProto, kind: int) -> None:
    """Let a node that says its own type say that of half precision."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            attribute.i = kind
        elif node.op_type == "ConstantOfShape" and attribute.name == FILL:
            values = numpy_helper.to_array(attribute.t).astype(_DTYPES[kind])
            attribute.t.CopyFrom(_tensor(FILL, kind, values))


def _tensor(name: str, kind: int, values: Any) -> TensorProto:
    return helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True)
