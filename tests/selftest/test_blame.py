"""Which layer did it: planted in one layer of an engine, found there."""

import dataclasses
import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginegate.cache import Store
from enginegate.diagnostics.layers.diagnosis import blame_layers
from enginegate.diagnostics.layers.rebuild import BLAME_TEXTS, rebuilder_of
from enginegate.diagnostics.layers.search import embedding_error
from enginegate.engines.api import ONNX_FILE
from enginegate.engines.build import build_engine
from enginegate.engines.graphs import Pair, keeping_in_file
from enginegate.engines.onnxruntime import open_onnx, run_onnx
from enginegate.engines.quantize import round_to, to_fp16
from enginegate.errors import EngineError, OptionError
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.layers import layers_of, matching, read_layers
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload, take
from enginegate.variants import Precision, Variant

ROLES = {"input_ids": "ids", "attention_mask": "mask"}


@pytest.fixture(scope="module")
def workload():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)


@pytest.fixture
def exported(tmp_path, layered):
    path = layered.write_layered_onnx(tmp_path / "model.onnx")
    spec = ModelSpec("layered", Kind.ONNX, str(path), vocab_size=200, seq_len=8)
    return Exported(spec, path, "hash", "from model.onnx", None, ROLES, "sentence_embedding")


class Suspect:
    """An engine, what it gives, and what is said of its layers."""

    def __init__(self, built, exported, workload):
        texts = take(workload.evaluation, slice(BLAME_TEXTS))
        reference = run_onnx(exported.onnx, texts)
        self.rebuilder = rebuilder_of(built, exported, workload, threads=1)
        with built.load(workload, threads=1) as engine:
            found = engine.embed(texts)
        diagnosis = blame_layers(self.rebuilder, read_layers(exported.onnx), found, reference)
        assert diagnosis.layers is not None
        self.layers, self.notes = diagnosis.layers, diagnosis.notes
        self.damage = embedding_error(found, reference)


def build(tmp_path, exported, workload, backend, precision):
    store = Store(tmp_path / "store")
    return build_engine(store, Variant("layered", backend, precision), exported, workload)


def test_layers_are_named_by_their_modules(exported):
    layers = read_layers(exported.onnx)
    names = [layer.name for layer in layers]
    assert names[:3] == ["embeddings/word_embeddings", "block 0/ffn/lin1", "block 0/ffn/activation"]
    assert names[-1] == "pooling"
    assert {layer.group for layer in layers} == {
        "embeddings",
        "block 0",
        "block 1",
        "block 2",
        "pooling",
    }
    assert layers[1].kind == "MatMul"
    assert layers[1].matmuls == 1


def test_layers_of_torchs_newer_exporter_are_named_by_the_nodes_notes():
    def node(output, scopes, classes):
        made = helper.make_node("MatMul", ["a", "b"], [output], name=f"node_{output}")
        notes = {"name_scopes": scopes, "class_hierarchy": classes}
        for key, value in notes.items():
            made.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=repr(value))
        return made

    stem = ["", "model", "model.0"]
    block = "model.0.encoder.layer.11"
    found = layers_of(
        [
            node("size", ["_empty_hook", "size"], ["hook", "aten"]),
            node("word", [*stem, "model.0.embeddings", "word"], ["E", "M", "T", "B", "aten"]),
            node(
                "q", [*stem, block, f"{block}.self.query", "q"], ["E", "M", "T", "L", "Q", "aten"]
            ),
            node("p", ["", "model", "model.1", "p"], ["E", "M", "a.b.Pooling", "aten"]),
            node("out", ["", "out"], ["E", "aten"]),
        ],
        {},
    )
    assert [layer.name for layer in found] == [
        "inputs",
        "embeddings",
        "block 11/self/query",
        "pooling",
    ]


def test_a_graph_without_modules_has_a_layer_per_node(tiny_onnx):
    names = [layer.name for layer in read_layers(tiny_onnx)]
    assert names[0] == "vectors"
    assert names[-1] == "sentence_embedding"


def test_layers_are_matched_by_name_group_and_wildcard(exported):
    layers = read_layers(exported.onnx)
    assert len(matching(layers, ["block 1"])) == 5
    assert [layer.name for layer in matching(layers, ["*/lin2"])] == [
        f"block {block}/ffn/lin2" for block in range(3)
    ]
    with pytest.raises(OptionError, match="no layer is named 'block 7'; groups are embeddings"):
        matching(layers, ["block 7"])


def test_the_embedding_error_is_one_minus_cosine_sees_a_gain_and_survives_nan():
    reference = np.eye(4)
    turned = np.eye(4)[[1, 0, 2, 3]]
    assert embedding_error(turned, reference) == pytest.approx(0.5)
    assert embedding_error(1.1 * reference, reference) == pytest.approx(0.005)
    assert embedding_error(np.where(reference == 1, np.nan, 0), reference) == 1
    assert embedding_error(reference, reference) == 0


LOW = [
    ("onnxruntime", Precision.FP16),
    ("onnxruntime", Precision.INT8),
    ("openvino", Precision.INT8),
]


@pytest.mark.parametrize(("backend", "precision"), LOW)
def test_all_kept_is_the_reference_and_none_is_the_engine(
    tmp_path, exported, workload, backend, precision
):
    built = build(tmp_path, exported, workload, backend, precision)
    suspect = Suspect(built, exported, workload)
    reference = run_onnx(exported.onnx, take(workload.evaluation, slice(BLAME_TEXTS)))
    touched = suspect.rebuilder.keeping.touched
    whole = embedding_error(suspect.rebuilder.embed(frozenset()), reference)
    assert whole == pytest.approx(suspect.damage, rel=1e-3)
    assert embedding_error(suspect.rebuilder.embed(touched), reference) < 1e-3 * whole
    assert suspect.layers
    assert not any("stale" in note for note in suspect.notes)


def planted(layered, exported, workload, tmp_path, **changes):
    """An fp32 engine of the same model with other weights."""
    wrong = layered.write_layered_onnx(tmp_path / "wrong.onnx", **changes)
    other = dataclasses.replace(exported, onnx=wrong, sha256="wrong")
    return build(tmp_path, other, workload, "onnxruntime", Precision.FP32)


@pytest.mark.parametrize("block", range(3))
def test_a_halved_layer_is_the_first_of_the_ranking(tmp_path, layered, exported, workload, block):
    halved = 0.5 * layered.weight(exported.onnx, f"out{block}")
    built = planted(layered, exported, workload, tmp_path, **{f"out{block}": halved})
    suspect = Suspect(built, exported, workload)
    assert suspect.layers[0].layer == f"block {block}/ffn/lin2"
    assert suspect.layers[0].repaired_share == pytest.approx(1, abs=1e-3)
    assert suspect.layers[0].local_error == pytest.approx(suspect.damage, rel=1e-3)
    assert f"blame: the first layer to diverge is block {block}/ffn/lin2" in suspect.notes


def test_a_layer_quantised_with_a_bad_scale_stands_out(tmp_path, exported, workload):
    built = build(tmp_path, exported, workload, "onnxruntime", Precision.INT8)
    spoiled = onnx.load(str(built.entry.folder / "engine.onnx"))
    (scale,) = [t for t in spoiled.graph.initializer if t.name == "tanh1_scale"]
    value = onnx.numpy_helper.to_array(scale)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value / 16), "tanh1_scale"))
    folder = tmp_path / "spoiled"
    folder.mkdir()
    onnx.save(spoiled, str(folder / "engine.onnx"))
    bad = dataclasses.replace(built, entry=dataclasses.replace(built.entry, folder=folder))
    assert Suspect(bad, exported, workload).layers[0].layer == "block 1/ffn/lin2"


def test_an_fp16_overflow_in_one_layer_is_among_the_first_three(
    tmp_path, layered, exported, workload
):
    """Large on the way in, small on the way out: right in fp32, infinite in fp16."""
    large = np.float32(1e5) * layered.weight(exported.onnx, "in1")
    path = layered.write_layered_onnx(tmp_path / "large.onnx", in1=large)
    large_model = dataclasses.replace(exported, onnx=path, sha256="large")
    built = build(tmp_path, large_model, workload, "onnxruntime", Precision.FP16)
    names = [layer.layer for layer in Suspect(built, large_model, workload).layers]
    assert "block 1/ffn/lin1" in names[:3]


def test_the_ranking_of_a_sane_engine_blames_no_layer(tmp_path, exported, workload):
    built = build(tmp_path, exported, workload, "onnxruntime", Precision.FP32)
    suspect = Suspect(built, exported, workload)
    assert suspect.layers == ()
    assert suspect.notes == ("blame: there is no damage to blame a layer for",)


def test_a_backend_that_cannot_keep_layers_says_so(tmp_path, exported, workload, monkeypatch):
    built = build(tmp_path, exported, workload, "openvino", Precision.FP32)
    with pytest.raises(EngineError, match="for int8 only"):
        rebuilder_of(built, exported, workload, threads=1)
    monkeypatch.setattr("enginegate.engines.build.get_backend", lambda name: object())
    with pytest.raises(EngineError, match="give it a method `keeping`"):
        rebuilder_of(built, exported, workload, threads=1)


def test_a_value_that_the_graph_lacks_is_a_clear_error(exported, tiny_onnx):
    graph = onnx.load(str(exported.onnx))
    source = onnx.load(str(exported.onnx))
    source.graph.node[1].input[0] = "elsewhere"
    with pytest.raises(EngineError, match="no value elsewhere for wide0"):
        Pair(graph, source).substituted({"wide0"})


def write_with_constants(path):
    """As by torch's exporter of old: nodes hold axes and weights; a conversion changes that."""
    weights = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    held = {"weights": weights, "axes": np.array([2])}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in held.items()
    ] + [
        helper.make_node("MatMul", ["x", "weights"], ["first"]),
        helper.make_node("Unsqueeze", ["first", "axes"], ["deep"]),
        helper.make_node("Squeeze", ["deep", "axes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in "xy")
    graph = helper.make_graph(nodes, "held", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def test_what_a_file_holds_in_nodes_is_put_in_too(tmp_path):
    source, half, kept = (tmp_path / name / ONNX_FILE for name in ("source", "half", "kept"))
    for path in (source, half, kept):
        path.parent.mkdir()
    write_with_constants(source)
    round_to(Precision.FP16, source, half)
    keeping = keeping_in_file(half.parent, source, {})
    keeping.build(keeping.touched | {"deep", "flat"}, kept.parent)
    batch: Any = {"x": np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)}
    own, rounded, put_in = (run_onnx(path, batch, optimised=False) for path in (source, half, kept))
    assert np.abs(put_in - own).max() < np.abs(rounded - own).max() / 2


def test_types_that_a_conversion_left_behind_do_no_harm(tmp_path, exported, workload):
    """As in MiniLM, whose converted graph still says float of some values that are float16."""
    to_fp16(exported.onnx, tmp_path / "half.onnx")
    half = onnx.load(str(tmp_path / "half.onnx"))
    for value in half.graph.value_info:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    made = Pair(half, onnx.load(str(exported.onnx))).substituted({"narrow1"})
    onnx.save(made, str(tmp_path / "made.onnx"))
    engine = open_onnx(tmp_path / "made.onnx", exported.output, workload.batch(2), threads=1)
    assert np.isfinite(engine.embed(workload.batch(4))).all()


WRONG_BUILT = """
import dataclasses, pathlib, pytest
from enginegate.engines import register
register('faulty', 'faulty:Faulty')
@pytest.fixture(scope='session')
def built(enginegate, enginegate_variant, exported, workload, reference):
    path = pathlib.Path('wrong.onnx').resolve()
    wrong = dataclasses.replace(exported, onnx=path, sha256='x')
    return enginegate.prepare.build(enginegate_variant, wrong, workload, reference)
"""


@pytest.fixture
def spoiled_project(project, layered):
    """The project's model has blocks, and the engine another second matrix in block 1."""
    path = layered.write_layered_onnx(project.path / "tiny.onnx")
    halved = 0.5 * layered.weight(path, "out1")
    layered.write_layered_onnx(project.path / "wrong.onnx", out1=halved)
    project.write("conftest.py", WRONG_BUILT)
    return project


def test_blame_names_the_layer_in_terminal_text_and_json(spoiled_project):
    reports = ("--gate-report-json", "report.json", "--gate-report-text", "report.txt")
    result = spoiled_project.judge("--gate-blame", "-k", "embeddings", *reports)
    result.assert_outcomes(failed=1)
    lines = ["fp32: blame: the first layer to diverge is block 1/ffn/lin2", "fp32: layers by *"]
    lines += ["layer * alone * repairs", "block 1/ffn/lin2 * MatMul * 100 %"]
    result.stdout.fnmatch_lines(lines)
    assert "block 1/ffn/lin2" in (spoiled_project.path / "report.txt").read_text()
    (found,) = json.loads((spoiled_project.path / "report.json").read_text())["results"]
    assert found["blame"][0]["layer"] == "block 1/ffn/lin2"
    assert found["blame"][0]["repaired_share"] > 0.999


def test_a_failure_without_blame_advises_it(spoiled_project):
    result = spoiled_project.judge("-k", "embeddings")
    result.stdout.fnmatch_lines(["*cosine_worst*--gate-blame says which layers do it*"])


def test_a_clean_engine_is_not_blamed(project):
    result = project.judge("--gate-blame", "-k", "embeddings")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["fp32: blame: there is no damage to blame a layer for"])


def test_a_fault_outside_the_layers_is_said_to_be_there(project):
    project.plant("swapped rows")
    result = project.judge("--gate-blame", "-k", "embeddings")
    result.stdout.fnmatch_lines(["fp32: blame: * lies outside the layers *"])
