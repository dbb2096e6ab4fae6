"""Changes of a ready ONNX graph that every runtime then takes: outputs, weights, pooling."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from enginegate.models.nature import FLOAT, HALVES, messages
from enginegate.models.onnx_file import opset_of

_PUT_IN = "pooling/"  # before the names of nodes and values that are put in
_EPSILON = 1e-12  # as torch's normalize
_AXES_AS_INPUT = 13  # opset from which Unsqueeze and ReduceSum take them so
_FEWEST_IR = 4  # from which weights need not be inputs
_FLAT = {"keepdims": 0}
_TYPED = ("to", "dtype", "output_dtype")
_FLOATS = frozenset({FLOAT, *HALVES})


def drop_weights_among_inputs(model: ModelProto) -> None:
    """Leave only what a caller gives among the inputs."""
    given = [value for value in model.graph.input if value.name not in weights_of(model)]
    del model.graph.input[:]
    model.graph.input.extend(given)
    model.ir_version = max(model.ir_version, _FEWEST_IR)


def weights_of(model: ModelProto) -> set[str]:
    """Names of the weights, sparse ones too."""
    graph = model.graph
    return {w.name for w in graph.initializer} | {w.values.name for w in graph.sparse_initializer}


def keep_output(model: ModelProto, name: str) -> None:
    """Leave one output, and only what it needs."""
    graph = model.graph
    needed = _needed(model, name)
    _put(graph.output, [value for value in graph.output if value.name == name])
    _put(graph.node, [node for node in graph.node if needed.intersection(node.output)])
    _put(graph.initializer, [w for w in graph.initializer if w.name in needed])


def _needed(model: ModelProto, name: str) -> set[str]:
    makers = {made: node for node in model.graph.node for made in node.output if made}
    needed, rest = set(), [name]
    while rest:
        value = rest.pop()
        if value not in needed:
            needed.add(value)
            rest += _read_by(makers[value]) if value in makers else []
    return needed


def _read_by(node: NodeProto) -> list[str]:
    """Every value that a node reads, in its subgraphs too."""
    return [name for part in messages(node, "NodeProto") for name in part.input]


def _put(field: Any, values: Collection[Any]) -> None:
    del field[:]
    field.extend(values)


def widen(model: ModelProto) -> None:
    """Make 16-bit floats fp32, exactly: weights, values, and what is cast to them."""
    kinds = _types(model)
    for tensor in messages(model, "TensorProto"):
        if tensor.data_type in HALVES:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for attribute in messages(model, "AttributeProto"):
        if attribute.name in _TYPED and attribute.i in HALVES:
            attribute.i = FLOAT
    for typed in messages(model, "Tensor"):  # TypeProto.Tensor
        if typed.elem_type in HALVES:
            typed.elem_type = FLOAT
    _drop_casts(model, [node for node in model.graph.node if _is_between_floats(node, kinds)])


def _types(model: ModelProto) -> Mapping[str, int]:
    """The element type of every value that is known."""
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # a conversion may have left old types behind
    for weight in bare.graph.initializer:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.DEFAULT
    graph = infer_shapes(bare).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    weights = {weight.name: weight.data_type for weight in graph.initializer}
    return {**weights, **{value.name: value.type.tensor_type.elem_type for value in values}}


def _is_between_floats(node: NodeProto, kinds: Mapping[str, int]) -> bool:
    if node.op_type != "Cast":
        return False
    return {kinds.get(name) for name in (*node.input, *node.output)} <= _FLOATS


def _drop_casts(model: ModelProto, casts: Sequence[NodeProto]) -> None:
    """Take out nodes that only hand on their value; the names of inputs and outputs stay."""
    ends = {value.name for value in model.graph.output}
    fixed = ends | weights_of(model) | {value.name for value in model.graph.input}
    names: dict[str, str] = {}
    dropped = set()
    for cast in casts:
        before, after = names.get(cast.input[0], cast.input[0]), cast.output[0]
        if after in ends and before in fixed:
            continue  # what is an input and an output has nobody else to hand it on
        old, new = (before, after) if after in ends else (after, before)
        names = {name: new if target == old else target for name, target in names.items()}
        names[old] = new
        dropped.add(after)
    _put(model.graph.node, [n for n in model.graph.node if dropped.isdisjoint(n.output)])
    for node in messages(model.graph, "NodeProto"):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def pool(
    model: ModelProto, name: str, pooling: str | None, mask: str | None, *, normalize: bool
) -> None:
    """Put the pooling and the scaling of its vectors behind the only output, as output `name`."""
    (given,) = model.graph.output
    nodes = _Nodes(opset_of(model))
    vectors = given.name
    if given.type.tensor_type.elem_type != FLOAT:
        vectors = nodes.add("Cast", [vectors], "float", to=FLOAT)
    if pooling is not None:
        vectors = POOLINGS[pooling](nodes, vectors, mask or "")
    if normalize:
        vectors = _normalized(nodes, vectors)
    nodes.made[-1].output[0] = name
    model.graph.node.extend(nodes.made)
    _put(model.graph.output, [_vectors_like(given, name)])


def _vectors_like(given: ValueInfoProto, name: str) -> ValueInfoProto:
    """The type [batch, dim] of pooled vectors."""
    dims = given.type.tensor_type.shape.dim
    ends = (dims[0], dims[-1]) if len(dims) else ()
    sizes = [dim.dim_value or dim.dim_param or None for dim in ends]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes or [None, None])


class _Nodes:
    """Nodes to put in, written as an opset wants them; each gives the name of its value."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self.made: list[NodeProto] = []

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        value = _PUT_IN + name
        node = helper.make_node(kind, inputs, [value], f"/{value}", **attributes)
        self.made.append(node)
        return value

    def constant(self, name: str, value: Any) -> str:
        return self.add("Constant", [], name, value=numpy_helper.from_array(np.asarray(value)))

    def over(self, kind: str, value: str, axis: int, name: str, **attributes: Any) -> str:
        """A node over one axis, which is an input or an attribute."""
        if self._opset < _AXES_AS_INPUT:
            return self.add(kind, [value], name, axes=[axis], **attributes)
        axes = self.constant(f"{name}/axis", np.array([axis], np.int64))
        return self.add(kind, [value, axes], name, **attributes)


def _first(nodes: _Nodes, tokens: str, _mask: str) -> str:
    return nodes.add("Gather", [tokens, nodes.constant("first", np.int64(0))], "pooled", axis=1)


def _last(nodes: _Nodes, tokens: str, mask: str) -> str:
    """The last token that is no padding; 0 where all is."""
    counted = nodes.add("Cast", [mask], "mask", to=FLOAT)
    total = nodes.over("ReduceSum", counted, 1, "tokens", keepdims=1)
    running = nodes.add("CumSum", [counted, nodes.constant("axis", np.int64(1))], "running")
    reached = nodes.add("Cast", [nodes.add("Equal", [running, total], "end")], "reached", to=FLOAT)
    last = nodes.over("Unsqueeze", nodes.add("Mul", [reached, counted], "last"), 2, "weight")
    each = nodes.add("Mul", [tokens, last], "each")
    return nodes.over("ReduceSum", each, 1, "pooled", **_FLAT)


def _mean(nodes: _Nodes, tokens: str, mask: str) -> str:
    """The mean over the mask; 0 where that is empty."""
    weight = nodes.over("Unsqueeze", nodes.add("Cast", [mask], "mask", to=FLOAT), 2, "weight")
    total = nodes.over("ReduceSum", nodes.add("Mul", [tokens, weight], "each"), 1, "sum", **_FLAT)
    count = nodes.over("ReduceSum", weight, 1, "tokens", **_FLAT)
    least = nodes.constant("one", np.float32(1))
    return nodes.add("Div", [total, nodes.add("Max", [count, least], "count")], "pooled")


def _normalized(nodes: _Nodes, vectors: str) -> str:
    squares = nodes.add("Mul", [vectors, vectors], "squares")
    length = nodes.add("Sqrt", [nodes.over("ReduceSum", squares, 1, "square", keepdims=1)], "root")
    least = nodes.constant("least", np.float32(_EPSILON))
    return nodes.add("Div", [vectors, nodes.add("Max", [length, least], "length")], "normalized")


POOLINGS: Mapping[str, Callable[[_Nodes, str, str], str]] = {
    "first": _first,
    "last": _last,
    "mean": _mean,
}
