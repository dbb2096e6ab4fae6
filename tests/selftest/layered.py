"""A small embedding model of three blocks as ONNX, its nodes named as torch names them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, BLOCKS = 200, 32, 3


def write_layered_onnx(path: Path, **changes: np.ndarray) -> Path:
    """[batch, seq] ids and mask to [batch, 32]; `changes` replace weights by name."""
    rng = np.random.default_rng(5)
    weights = {"table": rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)}
    weights |= {"axis": np.array([1]), "last": np.array([2])}
    nodes = [_node("Gather", ["table", "input_ids"], "x0", "embeddings/word_embeddings")]
    for block in range(BLOCKS):
        weights |= _block_weights(block, rng)
        nodes += _block_nodes(block)
    nodes += _pooling(f"x{BLOCKS}")
    _save(path, nodes, {**weights, **changes})
    return path


def _block_weights(block, rng):
    def normal(*shape):
        return rng.normal(size=shape, scale=0.2).astype(np.float32)

    return {
        f"in{block}": normal(WIDTH, 2 * WIDTH),
        f"out{block}": normal(2 * WIDTH, WIDTH),
        f"gain{block}": np.ones(WIDTH, np.float32),
        f"shift{block}": np.zeros(WIDTH, np.float32),
    }


def _block_nodes(block):
    b, path = block, f"encoder/layer.{block}"
    return [
        _node("MatMul", [f"x{b}", f"in{b}"], f"wide{b}", f"{path}/ffn/lin1"),
        _node("Tanh", [f"wide{b}"], f"tanh{b}", f"{path}/ffn/activation"),
        _node("MatMul", [f"tanh{b}", f"out{b}"], f"narrow{b}", f"{path}/ffn/lin2"),
        _node("Add", [f"narrow{b}", f"x{b}"], f"sum{b}", path),
        _node(
            "LayerNormalization",
            [f"sum{b}", f"gain{b}", f"shift{b}"],
            f"x{b + 1}",
            f"{path}/norm",
            epsilon=1e-5,
        ),
    ]


def _pooling(hidden):
    return [
        _node("Cast", ["attention_mask"], "weight", "", to=TensorProto.FLOAT),
        _node("Unsqueeze", ["weight", "last"], "weights", ""),
        _node("Mul", [hidden, "weights"], "masked", ""),
        _node("ReduceSum", ["masked", "axis"], "total", "", keepdims=0),
        _node("ReduceSum", ["weights", "axis"], "count", "", keepdims=0),
        _node("Div", ["total", "count"], "sentence_embedding", ""),
    ]


def _node(kind, inputs, output, path, **attributes):
    name = f"/{path}/{kind}" if path else f"/{kind}_{output}"
    return helper.make_node(kind, inputs, [output], name=name, **attributes)


def _save(path, nodes, weights):
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info(
        "sentence_embedding", TensorProto.FLOAT, ["batch", WIDTH]
    )
    initializers = [numpy_helper.from_array(v, name) for name, v in weights.items()]
    graph = helper.make_graph(nodes, "layered", tokens, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))  # torch notes the types too


def weight(path: Path, name: str) -> np.ndarray:
    """A weight of a written model."""
    graph = onnx.load(str(path)).graph
    return np.array(next(numpy_helper.to_array(t) for t in graph.initializer if t.name == name))
