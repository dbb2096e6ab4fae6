"""What the fake TensorRT makes of an ONNX file: something to run, and what the inspector says."""

import itertools
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
_ATTENTION = "attention"  # before the nodes of a kernel
_PASSING = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose")
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_AS_THEY_ARE = ("Cast", "Constant", "ConstantOfShape")  # round by themselves, or hold a type
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
    """The model as ONNX Runtime's CPU provider can run it, with the numbers of a GPU.

    That provider computes fp16 as f32 and drops casts between, so nothing rounds or overflows. Here
    a node with results in half precision computes in f32, and every result is cast: the casts
    stay, for they lose something. TF32 is as fp16: operands rounded.
    """
    elements = _element_types(model)
    nodes = [new for node in model.graph.node for new in _runnable(node, types, elements)]
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    del graph.graph.node[:]
    del graph.graph.value_info[:]
    graph.graph.node.extend(nodes)
    return graph.SerializeToString()


def _runnable(
    node: NodeProto, types: Mapping[str, str], elements: Mapping[str, int]
) -> Iterator[NodeProto]:
    halved = [name for name in node.output if elements.get(name) in _HALVES]
    tf32 = types.get(node.name) == "tf32"
    if node.op_type in _AS_THEY_ARE or not (tf32 or halved):
        yield node
        return
    new = NodeProto()
    new.CopyFrom(node)
    for index, name in enumerate(node.input):
        if tf32 or elements.get(name) in _HALVES:
            new.input[index] = f"{name}/{node.name}/{index}/f32"
            rounded = f"{name}/{node.name}/{index}/rounded" if tf32 else name
            if tf32:
                yield helper.make_node("Cast", [name], [rounded], to=TensorProto.FLOAT16)
            yield helper.make_node("Cast", [rounded], [new.input[index]], to=TensorProto.FLOAT)
    new.output[:] = [f"{name}/f32" if name in halved else name for name in node.output]
    yield new
    for name in halved:
        yield helper.make_node("Cast", [f"{name}/f32"], [name], to=elements[name])


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {weight.name: weight.data_type for weight in model.graph.initializer}


def kernels_of(model: onnx.ModelProto, types: Mapping[str, str]) -> list[list[str]]:
    """The multiplications that go into one kernel each.

    Products of what the same tensor is multiplied with, as a query, key and value are; and both
    products of an attention, whose operands are no weights.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = {w.name for w in model.graph.initializer}
    found: dict[str, list[str]] = {}
    pairs = itertools.count()
    for node in model.graph.node:
        if node.name not in types:
            continue
        learned = any(_source(name, makers) in weights for name in node.input)
        key = _source(node.input[0], makers) if learned else f"attention {next(pairs) // 2}"
        first = [] if learned else [_ATTENTION]
        found.setdefault(f"{key} {types[node.name]}", first).append(node.name)
    return list(found.values())


def _source(name: str, makers: Mapping[str, NodeProto]) -> str:
    """The tensor before all casts, transpositions and Q/DQ."""
    while name in makers and makers[name].op_type in _PASSING:
        name = makers[name].input[0]
    return name


def inspector_layers(
    kernels: list[list[str]],
    others: list[str],
    types: Mapping[str, str],
    *,
    shaped: bool,
    split: bool,
) -> list[dict[str, Any]]:
    """As the engine inspector lists them: kernels, after layers that name every node.

    `split`: type and format apart, as in TensorRT 11.
    """
    tensor = _tensor_of_11 if split else _tensor_of_10
    gemms = [_gemm(i, kernel, types, tensor, shaped=shaped) for i, kernel in enumerate(kernels)]
    return [*_beside(tensor, [*others, *types]), *gemms]


def _beside(tensor: Any, nodes: list[str]) -> list[dict[str, Any]]:
    """Layers that name nodes and multiply nothing."""
    metadata = "\x1f".join(f"[ONNX Layer: {name} | Local Function: f]" for name in nodes)
    inputs = [tensor("alpha", [], "Float"), tensor("x", [2, 8], "Int8")]
    return [
        {"Name": f"__myl_{kind}", "LayerType": kind, "Inputs": inputs, "Metadata": metadata}
        for kind in ("signal", "wait", "kgen")
    ]


def _gemm(
    index: int, kernel: list[str], types: Mapping[str, str], tensor: Any, *, shaped: bool
) -> dict[str, Any]:
    """A kernel; that of an attention names no type, and takes a mask and a scale."""
    attention, nodes = kernel[0] == _ATTENTION, [name for name in kernel if name != _ATTENTION]
    kind = types[nodes[0]]
    said = _FORMATS[kind] if shaped else "N/A due to dynamic shapes"
    tactic = "_gemm_mha_v2_0x1" if attention else _TACTICS[kind]
    scalars = [tensor(name, [1, 1], "Float") for name in ("alpha", "beta", "scale")]
    first = [*scalars, tensor("mask", [2, 1, 8, 8], "Bool")]
    operands = [tensor(name, [2, 8, 8], said) for name in "xyz"[: 3 if attention else 2]]
    return {
        "Name": f"{'_gemm_mha_v2' if attention else nodes[0]}_myl0_{index}",
        "LayerType": "kgen" if attention else "gemm",
        "Inputs": [*first, *operands],
        "TacticName": tactic if shaped else "",
        "Metadata": "\x1f".join(f"[ONNX Layer: {name}]" for name in nodes),
    }


def _tensor_of_10(name: str, shape: list[int], kind: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": shape, "Format/Datatype": kind}


def _tensor_of_11(name: str, shape: list[int], kind: str) -> dict[str, Any]:
    said = "Row major linear FP32 format (kLINEAR)"  # of the layout: no type of anything
    return {"Name": name, "Dimensions": shape, "DataType": kind, "Format": said}


def dim_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes, or names of the axes that are open."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]
