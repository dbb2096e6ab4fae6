"""What the fake TensorRT makes of an ONNX file: something to run, and what the inspector says."""

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper

MATMULS = ("MatMul", "Gemm")
_SUPPORTED = """
    Abs Add And Cast Clip Concat Constant ConstantOfShape CumSum DequantizeLinear Div Equal Erf Exp
    Expand Flatten Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual Identity IsNaN
    LayerNormalization Less LessOrEqual MatMul Max Min Mul Neg Not Or Pow QuantizeLinear Range
    ReduceL2 ReduceMax ReduceMean ReduceSum Relu Reshape ScatterND Shape Sigmoid Slice Softmax Split
    Sqrt Squeeze Sub Tanh Tile Transpose Trilu Unsqueeze Where
"""
_FORMATS = {"f32": "Float", "tf32": "Float", "f16": "Half", "bf16": "BFloat16", "i8": "Int8"}
_TACTICS = {
    "f32": "sm90_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize64x64x8_stage3",
    "tf32": "sm90_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x64x16_stage4",
    "f16": "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x64x32_stage4",
    "bf16": "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x32_stage4",
    "i8": "sm90_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64_stage4",
}
_SHORT: Mapping[int | None, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
}


def unsupported(model: onnx.ModelProto) -> list[tuple[int, NodeProto]]:
    """Nodes that the parser refuses, with their index."""
    names = set(_SUPPORTED.split())
    return [(i, n) for i, n in enumerate(model.graph.node) if n.op_type not in names]


def types_of_matmuls(model: onnx.ModelProto, *, typed: bool, tf32: bool) -> dict[str, str]:
    """The type each multiplication computes in, by node name. Untyped networks choose f32."""
    types = _element_types(model)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in MATMULS:
            name = _SHORT.get(types.get(node.input[0]), "f32") if typed else "f32"
            quantised = all(makers.get(i) == "DequantizeLinear" for i in node.input[:2])
            name = "i8" if quantised else name
            found[node.name] = "tf32" if name == "f32" and tf32 else name
    return found


def runnable(model: onnx.ModelProto, types: Mapping[str, str]) -> bytes:
    """The model as ONNX Runtime's CPU provider can run it: bf16 and tf32 as rounded operands."""
    nodes = [new for node in model.graph.node for new in _runnable(node, types)]
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph.SerializeToString()


def _runnable(node: NodeProto, types: Mapping[str, str]) -> Iterator[NodeProto]:
    kind = types.get(node.name, "")
    if node.op_type not in MATMULS or kind not in ("bf16", "tf32"):
        yield node
        return
    new = NodeProto()
    new.CopyFrom(node)
    for index, name in enumerate(node.input):
        new.input[index] = f"{name}/{node.name}/f32"
        rounded = name if kind == "bf16" else f"{name}/{node.name}/rounded"
        if kind == "tf32":
            yield helper.make_node("Cast", [name], [rounded], to=TensorProto.FLOAT16)
        yield helper.make_node("Cast", [rounded], [new.input[index]], to=TensorProto.FLOAT)
    if kind == "tf32":
        yield new
        return
    new.output[0] = f"{node.output[0]}/f32"
    yield new
    yield helper.make_node("Cast", [new.output[0]], [node.output[0]], to=TensorProto.BFLOAT16)


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {weight.name: weight.data_type for weight in model.graph.initializer}


def inspector_layers(
    types: Mapping[str, str], others: list[str], *, detailed: bool, shaped: bool
) -> list[Any]:
    """As the engine inspector lists them: multiplications, and the rest fused into one kernel."""
    names = [*(f"{name}_myl0_{i}" for i, name in enumerate(types)), "__myl_CastMulAdd_myl0_0"]
    if not detailed:
        return names
    layers = [_gemm(name, node, types[node], shaped) for name, node in zip(names, types)]  # noqa: B905
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in others)
    return [*layers, {"Name": names[-1], "LayerType": "kgen", "Inputs": [], "Metadata": metadata}]


def _gemm(name: str, node: str, kind: str, shaped: bool) -> dict[str, Any]:
    said = _FORMATS[kind] if shaped else "N/A due to dynamic shapes"
    return {
        "Name": name,
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Dimensions": [1, 8], "Format/Datatype": said}],
        "TacticName": _TACTICS[kind] if shaped else "",
        "Metadata": f"[ONNX Layer: {node}]",
    }


def dim_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes, or names of the axes that are open."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]
