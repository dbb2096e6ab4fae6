"""Edits of the shipped models' ONNX graphs: each plants one fault that a real pipeline has made.

A node is named by its first output. An edited weight becomes the node's own, as exports share equal
ones. Every edit changes the model it is given.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Edit = Callable[[onnx.ModelProto], None]
Change = Callable[[np.ndarray], np.ndarray]


def node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    """The node that makes a value."""
    return next(node for node in model.graph.node if output in node.output)


def nodes_of(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    """Nodes of one operator, in order of execution."""
    return [node for node in model.graph.node if node.op_type == kind]


def weighted(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Matrix multiplications by a weight, in order: query, key, value, out, up, down a block."""
    known = {tensor.name for tensor in model.graph.initializer}
    return [node for node in nodes_of(model, "MatMul") if node.input[1] in known]


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    """A copy of an initializer."""
    found = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(found).copy()


def set_weight(model: onnx.ModelProto, node: onnx.NodeProto, place: int, value) -> None:
    """Give a node an initializer of its own."""
    name = f"planted_{node.output[0]}_{place}"
    value = np.ascontiguousarray(value, dtype=np.asarray(value).dtype)
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[place] = name


def change_weight(output: str, change: Change, place: int = 1) -> Edit:
    """Change the weight of one node."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, output)
        set_weight(model, node, place, change(weight(model, node.input[place])))

    return edit


def change_all_weights(change: Change) -> Edit:
    """Change the weights of all matrix multiplications."""

    def edit(model: onnx.ModelProto) -> None:
        for node in weighted(model):
            set_weight(model, node, 1, change(weight(model, node.input[1])))

    return edit


def set_attribute(kind: str, name: str, value: object, only: str = "") -> Edit:
    """Set an attribute of all nodes of an operator, or of one."""

    def edit(model: onnx.ModelProto) -> None:
        for node in nodes_of(model, kind):
            if only in ("", node.output[0]):
                kept = [a for a in node.attribute if a.name != name]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def rewire(output: str, place: int, source: str) -> Edit:
    """Let a node read another value."""

    def edit(model: onnx.ModelProto) -> None:
        node_of(model, output).input[place] = source

    return edit


def replace_node(output: str, *made: onnx.NodeProto) -> Edit:
    """Put other nodes in the place of one; the last of them makes its output."""

    def edit(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        place = next(n for n, node in enumerate(nodes) if output in node.output)
        made[-1].metadata_props.extend(nodes[place].metadata_props)
        nodes[place : place + 1] = made
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return edit


def with_constant(name: str, value: np.ndarray, edit: Edit) -> Edit:
    """An edit that needs a constant."""

    def both(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        edit(model)

    return both


def all_ones(output: str, source: str, kind: int) -> Edit:
    """Let a mask keep everything, whatever it is cast to."""
    same = helper.make_node("Equal", [source, source], ["planted_ones"])
    return replace_node(output, same, helper.make_node("Cast", ["planted_ones"], [output], to=kind))


def through_fp16(output: str, factor: float) -> Edit:
    """Let a value pass through fp16, `factor` times as large: what is over 65504 becomes infinite.

    The node's own output is renamed; the value of the old name has been through fp16.
    """

    def edit(model: onnx.ModelProto) -> None:
        constant = numpy_helper.from_array(np.float32(factor), "planted_factor")
        model.graph.initializer.append(constant)
        made, fp16, fp32 = f"{output}_made", onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        node = node_of(model, output)
        node.output[0] = made
        place = list(model.graph.node).index(node)
        new = [
            helper.make_node("Mul", [made, "planted_factor"], ["planted_large"]),
            helper.make_node("Cast", ["planted_large"], ["planted_fp16"], to=fp16),
            helper.make_node("Cast", ["planted_fp16"], ["planted_fp32"], to=fp32),
            helper.make_node("Div", ["planted_fp32", "planted_factor"], [output]),
        ]
        for one in new:
            one.metadata_props.extend(node.metadata_props)
        nodes = list(model.graph.node)
        nodes[place + 1 : place + 1] = new
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return edit


def to_bf16(value: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, half up."""
    bits = value.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def flipped_bit(value: np.ndarray) -> np.ndarray:
    """The third bit of the exponent flipped in the largest weight: 16 times larger or smaller."""
    bits = value.view(np.uint32)
    place = np.unravel_index(np.abs(value).argmax(), value.shape)
    bits[place] ^= np.uint32(1 << 25)
    return value
