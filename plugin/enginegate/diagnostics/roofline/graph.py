"""An ONNX graph with its shapes known, at one batch size and sequence length."""

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.reference import ReferenceEvaluator

from enginegate.diagnostics.roofline.polynomial import Point
from enginegate.errors import ModelError

Shape = tuple[int | None, ...]
Values = dict[str, npt.NDArray[np.generic]]

_MOST_INDICES = 1 << 16  # integers up to this many are kept, floats up to one: they make shapes
_INTEGERS = frozenset([TensorProto.INT64, TensorProto.INT32])
_FLOATS = frozenset(
    [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]
)
_SCOPES = "pkg.torch.onnx.name_scopes"
_SHAPE = "Shape"
_ARITHMETIC = """
    Add Cast Concat Constant ConstantOfShape Div Equal Expand Gather Identity Max Min Mod Mul Range
    ReduceProd Reshape Shape Size Slice Squeeze Sub Unsqueeze Where
"""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a node.

    Attributes:
        name: in the graph.
        shape: its dimensions, None where not known; None if not even their number is.
        floating: whether it holds floating-point numbers.
        constant: whether it depends on no input of the model.
    """

    name: str
    shape: Shape | None
    floating: bool
    constant: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its dimensions. Raises ModelError if one is not known."""
        if self.shape is None or None in self.shape:
            raise ModelError(
                f"the size of tensor {self.name} does not follow from batch and sequence (shape "
                f"{self.shape and list(self.shape)}): its work cannot be counted; look for an "
                "operator before it that is not ONNX's own, or whose result depends on the values"
            )
        return tuple(d for d in self.shape if d is not None)

    @property
    def elements(self) -> int:
        """Number of elements. Raises ModelError if a dimension is not known."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Node:
    """An operator.

    Attributes:
        name: in the graph.
        kind: operator type, after its domain if that is not ONNX's own.
        scope: dotted path of the module it came from; its own name where that is not known.
        inputs: None for one that is left out.
        outputs: those that are used.
        attributes: by name.
    """

    name: str
    kind: str
    scope: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The inputs that are not left out."""
        return tuple(tensor for tensor in self.inputs if tensor is not None)

    @property
    def floating(self) -> bool:
        """Tell if it reads or writes floating-point numbers."""
        return any(tensor.floating for tensor in (*self.given, *self.outputs))


@dataclass(frozen=True)
class Graph:
    """A model without its weights.

    Attributes:
        path: of the file.
        skeleton: the model, its weights turned into inputs without data.
        constants: names of all initializers, with and without data.
        output: the output that everything else is for.
    """

    path: Path
    skeleton: onnx.ModelProto
    constants: frozenset[str]
    output: str

    def at(self, point: Point) -> tuple[Node, ...]:
        """Its nodes with (batch, seq) bound, in order of execution.

        Raises ModelError for an input with a dynamic dimension that is neither, and for shapes
        that contradict each other.
        """
        bound = onnx.ModelProto()
        bound.CopyFrom(self.skeleton)
        for value in bound.graph.input:
            _bind(value, point, self.path)
        try:
            inferred = _infer(_fold_shapes(_infer(bound)))
        except shape_inference.InferenceError as error:
            raise ModelError(
                f"{self.path} does not fit together at batch {point[0]}, sequence {point[1]}: "
                f"{error}"
            ) from error
        return tuple(_nodes(inferred.graph, set(self.constants)))


def read_graph(path: Path, output: str = "") -> Graph:
    """Read a model; `output` names what it is for, by default its first output.

    Raises ModelError if it is no ONNX model or has no such output.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own error types differ between its versions
        raise ModelError(f"{path} is not an ONNX model: {error}; export it again") from error
    names = [value.name for value in model.graph.output]
    if not names or (output and output not in names):
        raise ModelError(f"{path} has the outputs {names}, none is named {output!r}")
    constants = frozenset(tensor.name for tensor in model.graph.initializer)
    return Graph(path, _without_weights(model, path.parent), constants, output or names[0])


def _without_weights(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model with its large constants turned into inputs, and the small ones read."""
    graph = model.graph
    small = [tensor for tensor in graph.initializer if _may_make_shapes(tensor)]
    for tensor in filter(uses_external_data, small):
        load_external_data_for_tensor(tensor, str(folder))
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    declared = {value.name for value in graph.input} | {tensor.name for tensor in small}
    values = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in graph.initializer
        if tensor.name not in declared
    ]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(small)
    graph.input.extend(values)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def _may_make_shapes(tensor: onnx.TensorProto) -> bool:
    most = _MOST_INDICES if tensor.data_type in _INTEGERS else 1
    return bool(math.prod(tensor.dims) <= most)


def _bind(value: onnx.ValueInfoProto, point: Point, path: Path) -> None:
    """Give a model's input its sizes: batch first, then sequence."""
    for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
        if dimension.HasField("dim_value"):
            continue
        if axis >= len(point):
            named = dimension.dim_param or "unnamed"
            raise ModelError(
                f"input {value.name} of {path} has a dynamic dimension {axis} ({named}) beyond "
                "batch and sequence: export it with a fixed size"
            )
        dimension.dim_value = point[axis]


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _nodes(graph: onnx.GraphProto, constants: set[str]) -> Iterator[Node]:
    known = {v.name: _declared(v) for v in (*graph.value_info, *graph.input, *graph.output)}
    known |= {
        t.name: Tensor(t.name, tuple(t.dims), t.data_type in _FLOATS, constant=True)
        for t in graph.initializer
    }

    def tensor(name: str) -> Tensor:
        found = known.get(name, Tensor(name, None, floating=True, constant=False))
        return replace(found, constant=name in constants)

    for node in graph.node:
        if all(name in constants for name in node.input if name):
            constants |= set(node.output)
        yield Node(
            name=node.name or node.output[0],
            kind=f"{node.domain}.{node.op_type}".removeprefix("."),
            scope=_scope(node),
            inputs=tuple(tensor(name) if name else None for name in node.input),
            outputs=tuple(tensor(name) for name in node.output if name),
            attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        )


def _declared(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    known = kind.HasField("shape")
    sizes = (d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Tensor(
        value.name, tuple(sizes) if known else None, kind.elem_type in _FLOATS, constant=False
    )


def _scope(node: onnx.NodeProto) -> str:
    """Module path: of torch's metadata, else of a name such as `/encoder/layer.0/MatMul`."""
    noted = {entry.key: entry.value for entry in node.metadata_props}
    name = node.name or node.output[0]
    if _SCOPES in noted:
        *modules, _ = ast.literal_eval(noted[_SCOPES])
        return str(modules[-1]) if modules and modules[-1] else name
    folders = name.strip("/").split("/")[:-1]
    return ".".join(folders) or name


def _fold_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with sizes, and what is made of sizes and constants alone, as constants.

    `model` carries its inferred shapes; they are dropped, for another inference.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sizes = {
        value.name: np.array([d.dim_value for d in value.type.tensor_type.shape.dim], np.int64)
        for value in (*model.graph.value_info, *model.graph.input)
        if _known(value)
    }
    left = [node for node in model.graph.node if not _fold(node, values, sizes)]
    return _with_constants(model, left, values)


def _known(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)


def _fold(node: onnx.NodeProto, values: Values, sizes: Mapping[str, npt.NDArray[np.int64]]) -> bool:
    """Add what the node gives to `values` if that is known; whether it was."""
    if node.op_type == _SHAPE and node.input[0] in sizes:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        wanted = slice(ends.get("start"), ends.get("end"))
        values[node.output[0]] = sizes[node.input[0]][wanted]
        return True
    if node.domain or node.op_type not in _ARITHMETIC.split():
        return False
    if not all(name in values for name in node.input if name):
        return False
    given = {name: values[name] for name in node.input if name}
    found = ReferenceEvaluator(node).run(None, given)
    values |= dict(zip(node.output, map(np.asarray, found), strict=True))
    return True


def _with_constants(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], values: Values
) -> onnx.ModelProto:
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    del folded.graph.node[:], folded.graph.initializer[:], folded.graph.value_info[:]
    folded.graph.node.extend(nodes)
    folded.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return folded
