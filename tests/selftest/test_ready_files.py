"""A ready file is read for what it is, and rewritten so that every runtime takes it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginegate.cache import Store
from enginegate.engines import Built, build_engine, keeping_of, run_reference
from enginegate.errors import EngineError, ModelError
from enginegate.models import (
    export_model,
    make_batch,
    make_workload,
    specs_from,
    tokenize_with,
)
from enginegate.models.nature import read_nature
from enginegate.models.ready import ready_onnx
from enginegate.models.tokens import Encoded, file_tokenizer
from enginegate.models.workload import default_corpus, hashed_tokenizer
from enginegate.variants import Precision, Variant

VOCABULARY, WIDTH = 20, 4
IDS = np.array([[3, 5, 7, 0], [4, 4, 0, 0], [9, 8, 7, 6]])
MASK = (IDS > 0).astype(np.int64)
BATCH = {"input_ids": IDS, "attention_mask": MASK}
RNG = np.random.default_rng(3)
TABLE = RNG.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
SQUARE = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32)


@dataclass
class Model:
    """A graph of tokens: a table, one multiplication, and what a test adds."""

    path: Path
    kind: int = TensorProto.INT64
    opset: int = 17
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    outputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)

    def write(self):
        nodes = [
            helper.make_node("Gather", ["table", "input_ids"], ["vectors"], name="gather"),
            helper.make_node("MatMul", ["vectors", "square"], ["tokens"], name="multiply"),
            *self.nodes,
        ]
        given = [helper.make_tensor_value_info(n, self.kind, ["b", "s"]) for n in self.inputs]
        outputs = self.outputs or {"tokens": ("b", "s", WIDTH)}
        made = [helper.make_tensor_value_info(n, 1, shape) for n, shape in outputs.items()]
        weights = {"table": TABLE, "square": SQUARE, **self.weights}
        tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
        graph = helper.make_graph(nodes, "g", given, made, tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(self.path))
        return self

    def read(self, **table):
        keys = {"onnx": self.path.name, "vocab_size": VOCABULARY, **self.table, **table}
        spec = specs_from({"m": keys}, self.path.parent)["m"]
        return ready_onnx(spec, Store(self.path.parent / "cache"))


@pytest.fixture
def model(tmp_path):
    return Model(tmp_path / "m.onnx")


def tokens():
    return TABLE[IDS] @ SQUARE


def mean():
    weight = MASK[:, :, None]
    return (tokens() * weight).sum(1) / weight.sum(1)


def last():
    return np.stack(
        [row[np.flatnonzero(kept)[-1]] for row, kept in zip(tokens(), MASK, strict=True)]
    )


def normalized(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# pooling


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("pooling", "right"), [("mean", mean), ("first", lambda: tokens()[:, 0]), ("last", last)]
)
def test_a_vector_for_every_token_is_pooled(model, opset, normalize, pooling, right):
    model.opset = opset
    found = model.write().read(pooling=pooling, normalize=normalize)
    expected = normalized(right()) if normalize else right()
    np.testing.assert_allclose(run_reference(found.onnx, BATCH), expected, rtol=1e-5)
    assert found.output == "tokens_pooled"
    (output,) = onnx.load(found.onnx).graph.output
    assert [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim] == ["b", WIDTH]
    onnx.checker.check_model(str(found.onnx), full_check=True)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_empty_text_is_pooled_to_zero(model, pooling):
    found = model.write().read(pooling=pooling, normalize=True)
    empty = {"input_ids": IDS, "attention_mask": np.zeros_like(MASK)}
    assert (run_reference(found.onnx, empty) == 0).all()


def test_a_pooled_file_is_normalized_only_where_told(model):
    model.nodes = [helper.make_node("ReduceMax", ["tokens"], ["e"], axes=[1], keepdims=0)]
    model.outputs = {"e": ("b", WIDTH)}
    plain, scaled = model.write().read(), model.read(normalize=True)
    assert plain.onnx == model.path
    assert (plain.output, scaled.output) == ("e", "e_normalized")
    assert plain.sha256 != scaled.sha256
    expected = normalized(tokens().max(1))
    np.testing.assert_allclose(run_reference(scaled.onnx, BATCH), expected, rtol=1e-5)
    with pytest.raises(ModelError, match="is pooled already, having 2 dimensions: remove"):
        model.read(pooling="mean")


def test_tokens_without_a_pooling_or_without_a_mask_are_one_error(model):
    model.write()
    with pytest.raises(ModelError, match=r"a vector for every token: say `pooling` \(first, last"):
        model.read()
    model.inputs = ("input_ids",)
    model.write()
    for pooling, name in (("mean", "the mean"), ("last", "the last token")):
        with pytest.raises(ModelError, match=f"cannot be pooled by {name}: none of its inputs is"):
            model.read(pooling=pooling)
    assert model.read(pooling="first").output == "tokens_pooled"


def test_the_last_token_is_found_on_either_side_of_padding(model):
    found = model.write().read(pooling="last")
    batch = {"input_ids": IDS[:, ::-1].copy(), "attention_mask": MASK[:, ::-1].copy()}
    expected = tokens()[:, 0]  # which is the last one now
    np.testing.assert_allclose(run_reference(found.onnx, batch), expected, rtol=1e-5)


def test_the_last_token_needs_an_operator_that_older_files_have_not(model):
    model.opset = 10
    with pytest.raises(ModelError, match="by the last token: it is of opset 10, and 11 is needed"):
        model.write().read(pooling="last")
    assert model.read(pooling="first").output == "tokens_pooled"


# outputs, weights


def test_of_several_outputs_one_is_kept_with_what_it_needs(model):
    model.weights = {"unused": np.ones((WIDTH, 2), np.float32)}
    model.nodes = [
        helper.make_node("MatMul", ["tokens", "unused"], ["logits"], name="head"),
        helper.make_node("ReduceMax", ["tokens"], ["e"], axes=[1], keepdims=0),
    ]
    model.outputs = {"logits": ("b", "s", 2), "e": ("b", WIDTH)}
    with pytest.raises(ModelError, match=r"has outputs \['logits', 'e'\]: say which"):
        model.write().read()
    found = model.read(output="e")
    kept = onnx.load(found.onnx).graph
    assert [value.name for value in kept.output] == ["e"]
    assert [node.name for node in kept.node if node.name] == ["gather", "multiply"]
    assert "unused" not in [weight.name for weight in kept.initializer]
    np.testing.assert_allclose(run_reference(found.onnx, BATCH), tokens().max(1), rtol=1e-5)
    assert found.sha256 != model.read(output="logits", pooling="mean").sha256


def test_weights_among_the_inputs_are_no_inputs(model):
    model.write()
    graph = onnx.load(model.path)
    graph.ir_version = 3
    for weight in graph.graph.initializer:
        shape = helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        graph.graph.input.append(shape)
    onnx.save(graph, str(model.path))
    found = model.read(pooling="mean")
    assert set(found.inputs) == {"input_ids", "attention_mask"}
    assert len(onnx.load(found.onnx).graph.input) == 2
    onnx.checker.check_model(str(found.onnx))
    np.testing.assert_allclose(run_reference(found.onnx, BATCH), mean(), rtol=1e-5)


def test_rewritten_external_weights_stay_beside_the_graph(model):
    model.write()
    onnx.save(
        onnx.load(model.path),
        str(model.path),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=8,
    )
    found = model.read(pooling="mean")
    assert (found.onnx.parent / "w.bin").read_bytes() == (model.path.parent / "w.bin").read_bytes()
    np.testing.assert_allclose(run_reference(found.onnx, BATCH), mean(), rtol=1e-5)


# inputs


def test_positions_token_types_and_ones_are_given(model):
    inputs = dict.fromkeys(("p", "t", "o"))
    roles = {"p": "positions", "t": "token_types", "o": "ones"}

    def tokenize(_texts):
        mask = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
        return Encoded(IDS, mask, types=IDS * 2, cut=0)

    batch = make_batch(["a"], tokenize, roles)
    assert list(batch) == list(inputs)
    assert batch["p"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 2, 3]]
    assert (batch["t"] == IDS * 2).all()
    assert (batch["o"] == 1).all()


def test_token_types_are_those_of_the_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "[CLS]": 2}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = processors.TemplateProcessing(single="[CLS]:2 $A:1", special_tokens=[("[CLS]", 2)])
    tokenizer.post_processor = template
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    types = file_tokenizer(tmp_path / "tokenizer.json", 4)(["a a"]).types
    assert types.tolist() == [[2, 1, 1, 0]]


CONFIGS: dict[str, Any] = {
    "bert": ({"model_type": "bert", "pad_token_id": 0}, [[0, 1, 2, 2], [0, 1, 1, 1]], 0),
    "roberta": ({"model_type": "xlm-roberta", "pad_token_id": 1}, [[2, 3, 4, 1], [2, 3, 1, 1]], 2),
    "mpnet": ({"model_type": "mpnet", "pad_token_id": 1}, [[2, 3, 4, 1], [2, 3, 1, 1]], 2),
    "none": (None, [[0, 1, 2, 2], [0, 1, 1, 1]], 0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_positions_begin_where_the_configuration_says(model, name):
    """As transformers counts them: in RoBERTa and its kin behind padding, which has its own."""
    config, positions, first = CONFIGS[name]
    if config:
        (model.path.parent / "config.json").write_text(json.dumps(config))
    model.inputs = ("input_ids", "attention_mask", "position_ids")
    table = {"onnx": str(model.write().path), "vocab_size": VOCABULARY, "pooling": "mean"}
    spec = specs_from({"m": table}, model.path.parent)["m"]
    found = export_model(spec, Store(model.path.parent / "cache"), run_reference)
    assert found.first_position == first
    assert ("positions begin at 0: no config.json" in found.note) == (config is None)
    given = tokenize_with(found)(["one two three"])
    assert given.first == first
    batch = make_batch([], lambda _: Encoded(IDS[:2], MASK[:2], IDS[:2], 0, first), found.inputs)
    assert batch["position_ids"].tolist() == positions


def test_positions_of_a_truth_on_the_hub_begin_where_its_configuration_says(
    model, torch_loaded, monkeypatch, tmp_path_factory
):
    home, asked = tmp_path_factory.mktemp("hub"), []
    (home / "config.json").write_text(json.dumps(CONFIGS["roberta"][0]))

    def download(name, **_):
        asked.append(name)
        return str(home)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model.inputs = ("input_ids", "attention_mask", "position_ids")
    table = {"onnx": str(model.write().path), "vocab_size": VOCABULARY, "truth": "some/encoder"}
    spec = specs_from({"m": {**table, "pooling": "mean"}}, model.path.parent)["m"]
    found = export_model(spec, Store(model.path.parent / "cache"), run_reference)
    assert (found.first_position, asked) == (2, ["some/encoder"])
    assert "positions begin" not in found.note


@pytest.mark.parametrize("role", ["zeros", "ones", "token_types"])
@pytest.mark.parametrize("name", ["position_ids", "places"])
def test_positions_are_not_given_anything_else(model, role, name):
    model.inputs = ("input_ids", "attention_mask", name)
    model.weights = {"position_embeddings.weight": TABLE}
    model.nodes = [
        helper.make_node("Identity", [name], ["there"]),
        helper.make_node("Gather", ["position_embeddings.weight", "there"], ["placed"]),
        helper.make_node("Add", ["tokens", "placed"], ["both"]),
    ]
    model.outputs = {"both": ("b", "s", WIDTH)}
    roles = {"input_ids": "ids", "attention_mask": "mask", name: role}
    with pytest.raises(ModelError, match=f"{name!r} takes the positions of the tokens, and {role}"):
        model.write().read(inputs=roles, pooling="mean")
    assert model.read(inputs={**roles, name: "positions"}, pooling="mean").inputs[name]


def test_an_input_that_is_no_position_may_be_zeros(model):
    model.inputs = ("input_ids", "attention_mask", "kinds")
    model.weights = {"token_type_embeddings.weight": TABLE}
    model.nodes = [
        helper.make_node("Gather", ["token_type_embeddings.weight", "kinds"], ["typed"]),
        helper.make_node("Add", ["tokens", "typed"], ["both"]),
    ]
    model.outputs = {"both": ("b", "s", WIDTH)}
    roles = {"input_ids": "ids", "attention_mask": "mask", "kinds": "zeros"}
    assert model.write().read(inputs=roles, pooling="mean").inputs == roles


def test_int32_inputs_are_given_int32_and_others_are_one_error(model):
    model.kind = TensorProto.INT32
    found = model.write().read(pooling="mean")
    assert found.int32 == {"input_ids", "attention_mask"}
    tokenize = hashed_tokenizer(VOCABULARY, 4)
    workload = make_workload("w", default_corpus()[:12], tokenize, found.inputs, found.int32)
    assert {values.dtype for values in workload.evaluation.values()} == {np.dtype(np.int32)}
    assert run_reference(found.onnx, workload.evaluation).shape == (8, WIDTH)
    model.kind = TensorProto.FLOAT
    with pytest.raises(ModelError, match="neither int64 nor int32"):
        model.write().read(pooling="mean")


# links


def linked(model, data="../blobs/2"):
    """The file and its weights as links beside each other, named as nowhere else."""
    folder = model.path.parent
    for name in ("blobs", "snapshot"):
        (folder / name).mkdir()
    (folder / "w.bin").rename(folder / "blobs" / "2")
    model.path.rename(folder / "blobs" / "1")
    (folder / "snapshot" / "m.onnx").symlink_to("../blobs/1")
    (folder / "snapshot" / "w.bin").symlink_to(data)
    return Model(folder / "snapshot" / "m.onnx", table={"pooling": "first"})


def external(model):
    onnx.save(
        onnx.load(model.write().path),
        str(model.path),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=8,
    )
    return model


def test_weights_that_are_links_beside_a_link_are_the_models_own(model):
    found = linked(external(model)).read()
    assert found.weights == "from m.onnx"
    np.testing.assert_allclose(run_reference(found.onnx, BATCH), tokens()[:, 0], rtol=1e-5)


def test_a_link_to_elsewhere_is_not(model):
    external(model)
    (model.path.parent / "secret").write_bytes(b"\0" * 1000)
    with pytest.raises(ModelError, match="leads out of the model's folder to"):
        linked(model, "../secret").read()


def test_a_link_to_a_file_with_weights_beside_it_leads_there(model):
    external(model)
    (model.path.parent / "here").mkdir()
    (model.path.parent / "here" / "other.onnx").symlink_to("../m.onnx")
    there = Model(model.path.parent / "here" / "other.onnx", table={"pooling": "first"})
    (there.path.parent / "tokenizer.json").write_text("{}")
    found = there.read()
    assert found.weights == "from m.onnx"
    assert found.tokenizer == there.path.parent / "tokenizer.json"
    np.testing.assert_allclose(run_reference(found.onnx, BATCH), tokens()[:, 0], rtol=1e-5)


# the type of the file


def halved(model, kind="float16"):
    """The file as onnxruntime's converter writes it, or with bfloat16 weights cast at use."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = onnx.load(model.write().path)
    if kind == "float16":
        made = convert_float_to_float16(made, keep_io_types=True)
    else:
        for weight in made.graph.initializer:
            values = numpy_helper.to_array(weight)
            half = helper.make_tensor(weight.name + "_h", 16, values.shape, values.ravel())
            cast = helper.make_node("Cast", [weight.name + "_h"], [weight.name], to=1)
            made.graph.node.insert(0, cast)
            weight.CopyFrom(half)
    onnx.save(made, str(model.path))
    return model


@pytest.mark.parametrize(("kind", "error"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_a_file_of_halves_is_named_and_computed_in_fp32(model, kind, error):
    found = halved(model, kind).read(pooling="mean")
    name = {"float16": "fp16", "bfloat16": "bf16"}[kind]
    assert found.nature.words == f"fp32 on an {name} file"
    graph = onnx.load(found.onnx).graph
    assert {weight.data_type for weight in graph.initializer} == {TensorProto.FLOAT}
    assert [node.op_type for node in graph.node[:2]] == ["Gather", "MatMul"]
    rounded = [numpy_helper.to_array(w) for w in onnx.load(model.path).graph.initializer]
    table, square = sorted((r.astype(np.float32) for r in rounded), key=lambda r: -len(r))
    weight = MASK[:, :, None]
    expected = ((table[IDS] @ square) * weight).sum(1) / weight.sum(1)
    run = run_reference(found.onnx, BATCH)
    np.testing.assert_allclose(run, expected, rtol=1e-5)
    assert 0 < np.abs(run - mean()).max() < error * np.abs(mean()).max() * 5


def test_a_file_of_halves_can_be_converted_again(model, tmp_path):
    from enginegate.engines.quantize import to_fp16

    found = halved(model).read(pooling="mean")
    to_fp16(found.onnx, tmp_path / "again.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "again.onnx"))
    (again,) = session.run(None, BATCH)
    np.testing.assert_allclose(again, mean(), rtol=2e-2, atol=2e-2)


def test_an_fp32_file_is_used_as_it_lies(model):
    model.nodes = [helper.make_node("ReduceMax", ["tokens"], ["e"], axes=[1], keepdims=0)]
    model.outputs = {"e": ("b", WIDTH)}
    found = model.write().read()
    assert found.onnx == model.path
    assert found.nature.words == "fp32"


def quantised(model):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    fp32 = model.path.with_name("fp32.onnx")
    model.write().path.rename(fp32)
    quantize_dynamic(fp32, model.path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    return model


def test_a_quantised_file_is_named_and_only_int8_is_made_of_it(model):
    found = quantised(model).read(pooling="mean")
    assert found.nature.words == "int8 file, 1 of its 1 multiplications in int8"
    tokenize = hashed_tokenizer(VOCABULARY, 4)
    workload = make_workload("w", default_corpus()[:12], tokenize, found.inputs)
    store = Store(model.path.parent / "engines")

    def build(precision, **how) -> Built:
        return build_engine(store, Variant("m", "onnxruntime", precision), found, workload, **how)

    for precision in (Precision.FP32, Precision.FP16):
        with pytest.raises(EngineError, match=f"{precision} cannot be made of m: the reference is"):
            build(precision)
    with pytest.raises(EngineError, match="no layer of m can be kept in fp32: the reference is"):
        build(Precision.INT8, keep=["*"])
    built = build(Precision.INT8)
    with pytest.raises(EngineError, match="no layer of m can be kept in fp32"):
        keeping_of(built, found, workload.calibration)
    with built.load(workload, 1) as engine:
        expected = run_reference(found.onnx, workload.evaluation)
        assert np.array_equal(engine.embed(workload.evaluation), expected)


def qdq(operands):
    """A multiplication whose first `operands` operands are integers read back."""
    names = [f"x{i}" for i in range(2)]
    nodes = [
        helper.make_node("DequantizeLinear", [f"q{i}", "s"], [name])
        for i, name in enumerate(names[:operands])
    ]
    nodes += [
        helper.make_node("Transpose", names[:1], ["t"]),
        helper.make_node("MatMul", ["t", names[1]], ["y"]),
    ]
    return helper.make_model(helper.make_graph(nodes, "g", [], []))


def nbits():
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], bits=4, domain="com.microsoft")
    return helper.make_model(helper.make_graph([node], "g", [], []))


def quick_gelu():
    node = helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")
    return helper.make_model(helper.make_graph([node], "g", [], []))


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (qdq(0), "fp32"),
        (quick_gelu(), "fp32"),
        (qdq(1), "int8 file, 0 of its 1 multiplications in int8"),
        (qdq(2), "int8 file, 1 of its 1 multiplications in int8"),
        (nbits(), "int4 file, 0 of its 1 multiplications in int4"),
    ],
)
def test_a_multiplication_is_of_integers_where_both_operands_are(graph, words):
    assert read_nature(graph).words == words
