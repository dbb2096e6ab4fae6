"""A tiny embedding model as ONNX: token vectors, pooled, through a Linear layer. Built in a ms."""

from pathlib import Path

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
