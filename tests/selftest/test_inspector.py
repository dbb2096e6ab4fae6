"""What TensorRT's engine inspector says, read: both schemas, kernels named as public ones are."""

import json

import pytest

from enginegate.engines.tensorrt.inspector import types_of
from enginegate.errors import EngineError

XMMA = "sm90_xmma_gemm_{}_tn_n_tilesize128x128x64_stage4_warpsize2x2x1_tensor16x8x16"
NAMED = [  # kernels that tell their operands; the inputs are made to say otherwise
    (XMMA.format("f16f16_f16f16_f16"), "f16"),
    (XMMA.format("f16f32_f16f32_f32"), "f16"),
    (XMMA.format("f16f16_f16f32_f32"), "f16"),
    (XMMA.format("bf16bf16_bf16f32_f32"), "bf16"),
    (XMMA.format("f32f32_f32f32_f32"), "f32"),
    (XMMA.format("f32f32_tf32f32_f32"), "tf32"),
    (XMMA.format("tf32f32_tf32f32_f32"), "tf32"),
    (XMMA.format("i8i8_i8i32_f32"), "i8"),
    (XMMA.format("i8bf16_i8i32_f32"), "i8"),  # writes bf16
    (XMMA.format("e4m3bf16_e4m3f32_f32"), "f8"),
    (XMMA.format("e4m3e4m3_e4m3f32_f32"), "f8"),
    (XMMA.format("f16f16_i8f32_f32"), "unseen"),  # two types: weights alone are int8
    ("sm80_xmma_gemm_i8f32_i8i32_f32_by_fusion_tactic", "i8"),
    ("ampere_h16816gemm_64x64_ldg8_nn_v1", "f16"),
    ("turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f_tn", "f16"),
    ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn", "bf16"),
    ("cutlass_80_wmma_tensorop_f16_s161616gemm_f16_32x32_32x1_nn_align8", "f16"),
    ("cutlass_80_tensorop_s1688tf32gemm_128x128_16x4_nn_align4", "tf32"),
    ("cutlass_80_tensorop_i16832gemm_s8_128x128_64x3_tn_align16", "i8"),
    ("turing_int8_i8816gemm_int8_128x128_ldg16_mufu_stages_32x1_tn", "i8"),
    ("volta_sgemm_128x64_nn", "f32"),
    ("cutlass_80_simt_sgemm_128x128_8x5_nn_align1", "f32"),
]
UNNAMED = [  # kernels that do not tell: the inputs do
    ("_gemm_mha_v2_0x9b1fd14d8d5a1e7b3d3f", "kgen"),
    ("__myl_FcCastAddErf_0x6f1c", "fusion"),
    ("nvjet_sm100_tst_64x16_64x16_2x4_2cta_h_bz_splitK_TNT", "gemm"),
    ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "gemm"),
    ("", "gemm"),
]
SPELLINGS = [
    lambda said: {"Format/Datatype": said},
    lambda said: {"Format/Datatype": f"Row major linear {said} format"},
    lambda said: {"Datatype": said, "Format": "Row major linear FP32 format (kLINEAR)"},
    lambda said: {"DataType": said, "Format": "Row major linear FP32 format (kLINEAR)"},
]
WORDS = {"Half": "f16", "FP16": "f16", "BFloat16": "bf16", "Int8": "i8", "FP8": "f8", "UInt8": "u8"}


def tensor(said, shape=(2, 8, 8), spelling=SPELLINGS[-1]):
    return {"Name": "x", "Location": "Device", "Dimensions": list(shape), **spelling(said)}


def layer(tactic, *inputs, kind="gemm", nodes=("m",), name="layer"):
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": list(inputs),
        "TacticName": tactic,
        "Metadata": metadata,
    }


def read(*layers, tf32=True, nodes=("m",)):
    return types_of([json.dumps({"Layers": list(layers)})], nodes, tf32=tf32)


@pytest.mark.parametrize(("tactic", "kind"), NAMED)
def test_the_operands_of_a_kernel_are_in_its_name(tactic, kind):
    other = "Half" if kind == "f32" else "Float"
    assert read(layer(tactic, tensor(other), tensor(other))) == {kind: 1}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("word", "kind"), WORDS.items())
@pytest.mark.parametrize(("tactic", "layer_type"), UNNAMED)
def test_where_no_name_tells_the_inputs_do(tactic, layer_type, word, kind, spelling):
    operands = [tensor(word, spelling=spelling) for _ in range(3)]
    scalar = tensor("Float", (), spelling), tensor("Float", (1, 1), spelling)
    others = tensor("Bool", (2, 1, 8, 8), spelling), tensor("Float", (8,), spelling)
    assert read(layer(tactic, *scalar, *others, *operands, kind=layer_type)) == {kind: 1}


@pytest.mark.parametrize(("tactic", "layer_type"), UNNAMED)
def test_f32_is_said_only_where_tf32_was_forbidden(tactic, layer_type):
    found = layer(tactic, tensor("Float"), tensor("Float"), kind=layer_type)
    assert read(found, tf32=True) == {"f32 or tf32": 1}
    assert read(found, tf32=False) == {"f32": 1}


@pytest.mark.parametrize("tf32", [True, False])
def test_a_tensor_core_that_names_no_operand_takes_f32_as_tf32(tf32):
    tactic = "cutlass_80_tensorop_s1688gemm_128x128_16x5_nn_align4"
    assert read(layer(tactic, tensor("Float"), tensor("Float")), tf32=tf32) == {"tf32": 1}
    assert read(layer(tactic, tensor("Half"), tensor("Half")), tf32=tf32) == {"f16": 1}


def test_an_attention_with_a_mask_of_f32_has_the_type_of_its_operands():
    operands = [tensor("Half", (2, 4, 8, 8)) for _ in range(3)]
    found = layer("_gemm_mha_v2_0x1", tensor("Float", (2, 1, 8, 8)), *operands, kind="kgen")
    assert read(found) == {"f16": 1}


def test_two_types_as_often_are_unseen():
    assert read(layer("_gemm_0x1", tensor("Half"), tensor("Float"))) == {"unseen": 1}


def test_one_kernel_holds_several_products():
    found = layer(XMMA.format("f16f16_f16f32_f32"), nodes=("q", "k", "v"))
    assert read(found, nodes=("q", "k", "v")) == {"f16": 3}


def test_a_local_function_is_no_part_of_a_nodes_name():
    found = layer(XMMA.format("f16f16_f16f32_f32"))
    found["Metadata"] = "[ONNX Layer: a/m | Local Function: Block_1]\x1e[ONNX Layer: b]"
    assert read(found, nodes=("a/m", "b")) == {"f16": 2}


@pytest.mark.parametrize("kind", ["constant", "NoOp", "Reformat", "signal", "wait", "kgen"])
def test_layers_that_multiply_nothing_do_not_count(kind):
    beside = layer("__myl_Move_0x1", tensor("Int8"), tensor("Int8"), kind=kind)
    assert read(beside, layer("_gemm_0x1", tensor("Half"), tensor("Half"))) == {"f16": 1}


def test_a_product_that_was_made_a_sum_has_the_type_of_that():
    found = layer("__myl_MulSum_0x1", tensor("Half"), tensor("Half"), kind="kgen")
    assert read(found) == {"f16": 1}


def test_what_no_layer_names_is_unseen():
    assert read(layer("x", nodes=("other",))) == {"unseen": 1}


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"Layers": 1}'])
def test_what_is_no_list_of_layers_is_an_error(text):
    with pytest.raises(EngineError, match="gave no list of layers"):
        types_of([text], ("m",), tf32=False)


def test_a_product_that_ran_in_two_types_at_two_batch_sizes_is_counted_as_both():
    texts = [
        json.dumps({"Layers": [layer("_gemm_0x1", tensor(kind), tensor(kind))]})
        for kind in ("Half", "Float")
    ]
    assert types_of(texts, ("m",), tf32=False) == {"f16 or f32": 1}
    assert types_of(texts[:1] * 2, ("m",), tf32=False) == {"f16": 1}
