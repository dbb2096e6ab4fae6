"""A tiny embedding model as ONNX: token vectors, pooled, through a Linear layer. Built in a ms."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 200
WIDTH = 32
DIM = 16


def write_tiny_onnx(
    path: Path, *, pooling: str = "mean", head_gain: float = 1.0, work: int = 0
) -> Path:
    """[batch, seq] ids and mask to [batch, 16]; mean over the mask, or the first token.

    `work` is the width of a square multiplication that takes time and changes nothing.
    """
    rng = np.random.default_rng(7)
    table = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    head = (head_gain * rng.normal(size=(WIDTH, DIM))).astype(np.float32)
    constants = {"table": table, "head": head, "axis": np.array([1]), "last": np.array([2])}
    constants["zero"] = np.array(0)
    constants["ballast"] = np.ones((work, work), np.float32)
    constants["nothing"] = np.array(0, np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        *(_mean_nodes() if pooling == "mean" else _first_nodes()),
        helper.make_node("MatMul", ["pooled", "head"], ["projected"]),
        *_idle_nodes(work),
    ]
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", DIM])
    initializers = [numpy_helper.from_array(v, name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "tiny", tokens, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _idle_nodes(work: int) -> list[onnx.NodeProto]:
    if not work:
        return [helper.make_node("Identity", ["projected"], ["sentence_embedding"])]
    return [
        helper.make_node("ReduceMax", ["projected"], ["most"], keepdims=0),
        helper.make_node("Mul", ["ballast", "most"], ["heavy"]),
        helper.make_node("MatMul", ["heavy", "ballast"], ["worked"]),
        helper.make_node("ReduceMax", ["worked"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "nothing"], ["unseen"]),
        helper.make_node("Add", ["projected", "unseen"], ["sentence_embedding"]),
    ]


def _mean_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["attention_mask"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight", "last"], ["weights"]),
        helper.make_node("Mul", ["vectors", "weights"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "axis"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["pooled"]),
    ]


def _first_nodes() -> list[onnx.NodeProto]:
    return [helper.make_node("Gather", ["vectors", "zero"], ["pooled"], axis=1)]


class _Graph:
    """Nodes and seeded weights of a graph, each value named after its node."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def constant(self, name: str, values: object, kind: type = np.float32) -> str:
        self.weights[name] = np.asarray(values, kind)
        return name

    def weight(self, name: str, *shape: int) -> str:
        scale = shape[0] ** -0.5 if len(shape) > 1 else 0.1
        return self.constant(name, scale * self.rng.normal(size=shape))

    def add(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def linear(self, name: str, x: str, width: int, dim: int) -> str:
        product = self.add("MatMul", f"{name}/product", x, self.weight(f"{name}/w", width, dim))
        return self.add("Add", name, product, self.weight(f"{name}/b", dim))

    def norm(self, name: str, x: str, width: int) -> str:
        gain = self.constant(f"{name}/gain", np.ones(width))
        shift = self.constant(f"{name}/shift", np.zeros(width))
        return self.add("LayerNormalization", name, x, gain, shift, epsilon=1e-5)


def write_bert(
    path: Path, *, hidden: int = 32, layers: int = 1, heads: int = 2, seed: int = 7
) -> Path:
    """A BERT of seeded weights: [batch, seq] ids and mask to [batch, hidden], mean over the mask.

    The scale stands before the first product of the attention, where TensorRT fuses it.
    """
    g = _Graph(seed)
    split = g.constant("split", [0, 0, heads, hidden // heads], np.int64)
    whole = g.constant("whole", [0, 0, hidden], np.int64)
    g.constant("axes", [1, 2], np.int64)
    g.constant("axis", [1], np.int64)
    g.constant("last", [2], np.int64)
    table = g.constant("table", g.rng.normal(size=(VOCABULARY, hidden)))
    x = g.norm("norm", g.add("Gather", "words", table, "input_ids"), hidden)
    taken = g.add("Cast", "taken", "attention_mask", to=TensorProto.FLOAT)
    left = g.add("Sub", "left", g.constant("one", 1), taken)
    far = g.add("Mul", "far", left, g.constant("lowest", np.finfo(np.float32).min))
    mask = g.add("Unsqueeze", "mask", far, "axes")
    for layer in range(layers):
        x = _attend(g, f"layer.{layer}", x, mask, hidden, heads, split, whole)
    weights = g.add("Unsqueeze", "weights", taken, "last")
    total = g.add("ReduceSum", "total", g.add("Mul", "masked", x, weights), "axis", keepdims=0)
    count = g.add("ReduceSum", "count", weights, "axis", keepdims=0)
    g.add("Div", "sentence_embedding", total, count)
    _save(path, g, hidden)
    return path


def _attend(
    g: _Graph, name: str, x: str, mask: str, hidden: int, heads: int, split: str, whole: str
) -> str:
    parts = {}
    for part in ("query", "key", "value"):
        line = g.linear(f"{name}/{part}", x, hidden, hidden)
        cut = g.add("Reshape", f"{line}/cut", line, split)
        order = [0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]
        parts[part] = g.add("Transpose", f"{line}/turned", cut, perm=order)
    scale = g.constant(f"{name}/scale", (hidden / heads) ** -0.5)
    query = g.add("Mul", f"{name}/scaled", parts["query"], scale)
    scores = g.add("MatMul", f"{name}/scores", query, parts["key"])
    shares = g.add("Softmax", f"{name}/shares", g.add("Add", f"{name}/seen", scores, mask), axis=-1)
    mixed = g.add("MatMul", f"{name}/mixed", shares, parts["value"])
    turned = g.add("Transpose", f"{name}/back", mixed, perm=[0, 2, 1, 3])
    joined = g.linear(
        f"{name}/out", g.add("Reshape", f"{name}/whole", turned, whole), hidden, hidden
    )
    x = g.norm(f"{name}/norm1", g.add("Add", f"{name}/sum1", x, joined), hidden)
    wide = g.linear(f"{name}/up", x, hidden, 4 * hidden)
    root = g.add("Div", f"{name}/part", wide, g.constant(f"{name}/root", 2**0.5))
    bent = g.add("Add", f"{name}/bent", g.add("Erf", f"{name}/erf", root), "one")
    half = g.add("Mul", f"{name}/half", wide, g.constant(f"{name}/0.5", 0.5))
    gelu = g.add("Mul", f"{name}/gelu", half, bent)
    narrow = g.linear(f"{name}/down", gelu, 4 * hidden, hidden)
    return g.norm(f"{name}/norm2", g.add("Add", f"{name}/sum2", x, narrow), hidden)


def _save(path: Path, g: _Graph, dim: int) -> None:
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", dim])
    tensors = [numpy_helper.from_array(v, name) for name, v in g.weights.items()]
    graph = helper.make_graph(g.nodes, "bert", tokens, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
