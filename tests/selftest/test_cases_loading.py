"""Nothing of a model vanishes as it is loaded: what is left out is named, or is an error."""

import importlib
import json
import os
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from enginegate.cache import Store
from enginegate.diagnostics.roofline.graph import read_graph
from enginegate.engines import ONNX_FILE, run_reference
from enginegate.engines.onnxruntime import OnnxRuntime
from enginegate.errors import ModelError, OptionError
from enginegate.files import sha256_of
from enginegate.models import (
    Kind,
    ModelSpec,
    beside,
    export_model,
    is_large_file,
    save_onnx,
    specs_from,
    typed,
)
from enginegate.models.checkpoints import check_folder
from enginegate.models.export import _left_out, _stored_backbone
from enginegate.variants import Precision

pytestmark = pytest.mark.xdist_group("cases")

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
NARROW: dict[str, Any] = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
BART: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
BATCH = {name: np.ones((8, 8), np.int64) for name in ("input_ids", "attention_mask")}
HEAD = " (without its pre-training head)"


@pytest.fixture
def save(torch_loaded, tmp_path):
    """Write a tiny seeded model of a class; its folder."""
    import transformers

    def write(name, config, **sizes):
        made = getattr(transformers, config)(**sizes)
        getattr(transformers, name)(made).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return write


def spec_of(folder, kind=Kind.TRANSFORMERS, *dropped):
    return ModelSpec("mine", kind, str(folder), allow_dropped=dropped)


def load(folder, *dropped):
    """What is said of the weights of a folder that is loaded by `transformers`."""
    return _stored_backbone(spec_of(folder, Kind.TRANSFORMERS, *dropped), folder, folder)[1]


def change(path, **values):
    found = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found | values))


def reweigh(folder, **weights):
    """Add weights to a checkpoint; None removes one."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    found = load_file(path) | {k: torch.ones(2) for k, w in weights.items() if w}
    save_file({k: v for k, v in found.items() if weights.get(k, True)}, path, {"format": "pt"})


def pipeline(folder, **modules):
    """The folder as a pipeline of sentence-transformers."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **modules}
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    change(folder / "1_Pooling" / "config.json", word_embedding_dimension=16)
    return folder


@pytest.fixture
def bert(save):
    return save("BertModel", "BertConfig", **SIZES)


def test_a_reranker_is_judged_by_its_scores_and_not_by_its_body(judge_case):
    _, report = judge_case("dropped_head")
    (found,) = report["results"]
    assert found["context"]["output_kind"] == "score"
    assert found["truth"]["by"] == "predict()"


def test_what_is_dropped_on_purpose_is_said_in_the_report(judge_case, make_case, monkeypatch):
    table = make_case("dropped_head") / "pyproject.toml"
    before = table.read_text()
    monkeypatch.setattr("enginegate.models.export._LONG_BYTES", 100_000)
    table.write_text(before + 'allow_dropped = ["classifier.*"]\n')
    try:
        result, report = judge_case("dropped_head")
    finally:
        table.write_text(before)
    assert result.ret == 0
    said = "weights: from model (without classifier.*: allow_dropped)"
    begins = "enginegate: model mine: 0.0 GB to export and check, about * s"
    ends = "enginegate: model mine: *.* s"
    result.stdout.fnmatch_lines([begins, ends, f"*{said}*"])
    assert report["results"][0]["context"]["weights"] == said.removeprefix("weights: ")


PRETRAINED = {
    "BertForMaskedLM": ("BertConfig", SIZES),
    "BertForPreTraining": ("BertConfig", SIZES),
    "DistilBertForMaskedLM": (
        "DistilBertConfig",
        {"vocab_size": 90, "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
    ),
    "RobertaForMaskedLM": ("RobertaConfig", SIZES),
    "MPNetForMaskedLM": ("MPNetConfig", SIZES),
    "ModernBertForMaskedLM": ("ModernBertConfig", {**SIZES, **ENDS, "sep_token_id": 2}),
    "ElectraForPreTraining": ("ElectraConfig", {**SIZES, "embedding_size": 16}),
    "AlbertForPreTraining": ("AlbertConfig", {**SIZES, "embedding_size": 16}),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", SIZES),
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretraining_head_is_left_out_and_said(save, name):
    config, sizes = PRETRAINED[name]
    assert load(save(name, config, **sizes)) == HEAD


def test_a_whole_encoder_has_nothing_to_say(bert):
    assert load(bert) == ""
    reweigh(bert, **{"embeddings.position_ids": True})  # a buffer of old checkpoints
    assert load(bert) == ""


@pytest.mark.parametrize("name", ["linear.weight", "projection.weight", "score.bias"])
def test_a_weight_that_no_class_takes_is_an_error_unless_it_is_allowed(bert, name):
    reweigh(bert, **{name: True})
    first = name.partition(".")[0]
    with pytest.raises(ModelError, match=rf"would be dropped: {first}\.\* \(config.json says Bert"):
        load(bert)
    assert load(bert, name) == f" (without {first}.*: allow_dropped)"
    with pytest.raises(ModelError, match="would be dropped"):
        load(bert, "another.*")


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("BertForSequenceClassification", 3, r"is a classifier \(BertForSeq.*, 3 labels\)"),
        ("BertForTokenClassification", 2, r"is a classifier \(BertForToken.*, 2 labels\)"),
        ("BertForQuestionAnswering", 2, r"is a classifier .*head qa_outputs\.\* would be"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS])
def test_a_classifier_is_refused_by_what_it_is(save, name, labels, said, kind):
    folder = save(name, "BertConfig", num_labels=labels, **SIZES)
    with pytest.raises(ModelError, match=said):
        check_folder(spec_of(folder, kind), folder)
    check_folder(spec_of(folder, kind, "classifier.*", "qa_outputs.*"), folder)


def test_a_body_whose_configuration_still_says_classifier_is_loaded(bert):
    change(bert / "config.json", architectures=["BertForSequenceClassification"])
    assert load(bert) == ""


OTHERS = {
    "sparse by a table": (
        lambda f: pipeline(f, **{"2_S": "SparseStaticEmbedding"}),
        r"sparse encoder \(SparseStaticEmbedding\): of sparse encoders only SPLADE is judged",
    ),
    "sparse by its largest": (
        lambda f: pipeline(f, **{"2_S": "SparseAutoEncoder"}),
        r"sparse encoder \(SparseAutoEncoder\): of sparse encoders only SPLADE is judged",
    ),
    "sparse that is cut": (
        lambda f: change(f / "config_sentence_transformers.json", max_active_dims=64),
        r"sparse encoder \(max_active_dims 64\): its largest terms alone are kept",
    ),
    "ColBERT": (lambda f: change(f / "config.json", architectures=["HF_ColBERT"]), "per-token"),
    "MaxSim": (
        lambda f: change(f / "config_sentence_transformers.json", similarity_fn_name="MaxSim"),
        "per-token model",
    ),
    "ColPali": (
        lambda f: change(f / "config.json", architectures=["ColPaliForRetrieval"]),
        "per-token model",
    ),
    "reranker by words": (
        lambda f: pipeline(f, **{"2_S": "LogitScore"}),
        r"a reranker \(LogitScore\): it scores by the words that a language model would say",
    ),
    "CLIP": (
        lambda f: change(f / "config.json", model_type="clip", vision_config={}),
        "a model of images",
    ),
    "ViT": (
        lambda f: change(f / "config.json", architectures=["ViT"], image_size=9, patch_size=3),
        r"a model of images \(ViT\)",
    ),
    "CLIP in a pipeline": (lambda f: pipeline(f, **{"2_C": "CLIPModel"}), "a model of images"),
    "adapter": (
        lambda f: change(f / "adapter_config.json", base_model_name_or_path="a/b"),
        r"adapter of a/b \(PEFT, .*beside whole weights.*merge it.*merge_and_unload",
    ),
}


@pytest.mark.parametrize("kind", [Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS])
@pytest.mark.parametrize("name", OTHERS)
def test_what_gives_no_embedding_a_text_is_refused_by_what_it_is(bert, name, kind):
    plant, said = OTHERS[name]
    check_folder(spec_of(bert, kind), bert)
    plant(bert)
    with pytest.raises(ModelError, match=said):
        check_folder(spec_of(bert, kind), bert)


def test_an_adapter_alone_is_not_called_half(bert):
    (bert / "model.safetensors").unlink()
    (bert / "config.json").unlink()
    change(bert / "adapter_config.json", base_model_name_or_path="a/b")
    with pytest.raises(ModelError, match=r"holds an adapter of a/b \(PEFT, .*json\): merge it"):
        load(bert)


def test_the_encoder_of_an_encoder_decoder_is_used_and_said(save):
    folder = save("T5EncoderModel", "T5Config", vocab_size=90, **NARROW)
    assert load(folder) == " (its encoder)"


def test_a_decoder_that_would_be_dropped_is_named(save):
    folder = save("T5ForConditionalGeneration", "T5Config", vocab_size=90, **NARROW)
    with pytest.raises(ModelError, match=r"would be dropped: decoder\.\* .*= .\"decoder\.\*\""):
        load(folder)
    assert load(folder, "decoder.*") == " (its encoder) (without decoder.*: allow_dropped)"


def test_a_decoder_alone_is_not_taken_for_an_encoder(save):
    folder = save("BartModel", "BartConfig", vocab_size=90, **BART)
    with pytest.raises(ModelError, match=r"an encoder with a decoder \(bart\).*in a `factory`"):
        load(folder)


@pytest.mark.parametrize("kind", [Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS])
def test_missing_weights_are_named_and_not_filled_with_random_ones(bert, kind):
    pipeline(bert)
    reweigh(bert, **{"embeddings.LayerNorm.bias": None, "pooler.dense.bias": None})
    with pytest.raises(ModelError, match=r"has no weights embeddings\.LayerNorm\.bias, which its"):
        _left_out(spec_of(bert, kind), bert)


def remove(name):
    return lambda folder: (folder / name).unlink()


def shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    change(folder / "model.safetensors.index.json", **index)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (remove("model.safetensors"), "model.safetensors is missing"),
        (remove("config.json"), "config.json is missing"),
        (shard, "model-1.safetensors is missing, model-2.safetensors is missing"),
        (cut, r"model.safetensors is damaged \(.*\)"),
    ],
)
def test_only_a_folder_with_a_gap_is_called_not_whole(bert, plant, said):
    check_folder(spec_of(bert), bert)
    plant(bert)
    with pytest.raises(ModelError, match=rf"folder .* is not whole: {said}; fetch it again"):
        check_folder(spec_of(bert), bert)


def test_a_pipeline_without_a_modules_folder_is_not_whole(bert):
    pipeline(bert, **{"2_Normalize": "Normalize"})
    check_folder(spec_of(bert, Kind.SENTENCE_TRANSFORMERS), bert)
    pipeline(bert, **{"2_Dense": "Dense"})
    with pytest.raises(ModelError, match="is not whole: 2_Dense is missing"):
        check_folder(spec_of(bert, Kind.SENTENCE_TRANSFORMERS), bert)


def test_a_whole_folder_that_does_not_load_is_not_called_half(bert, monkeypatch):
    change(bert / "config.json", model_type="of-tomorrow")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*of-tomorrow") as caught:
        load(bert)
    assert "not whole" not in str(caught.value)


def test_a_dense_layer_that_a_head_replaces_does_not_vanish(bert):
    pipeline(bert, **{"2_Dense": "Dense"})
    (bert / "2_Dense").mkdir()
    (bert / "2_Dense" / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    headed = replace(spec_of(bert), head=4)
    with pytest.raises(ModelError, match=r"2_Dense/.*is not taken: leave `head` out to follow"):
        check_folder(headed, bert)
    check_folder(replace(headed, allow_dropped=("2_Dense/*",)), bert)
    for kind in (Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS):  # where it is followed
        check_folder(spec_of(bert, kind), bert)


LOW = ("enginegate.models.onnx_file.LIMIT_BYTES", 40_000)


@pytest.fixture
def low_limit(monkeypatch):
    """Take a model over 40 kB for one that no message holds."""
    monkeypatch.setattr(*LOW)


@pytest.fixture(scope="module")
def two_tunes(torch_loaded, tmp_path_factory):
    """The exports of two fine-tunes of one architecture, over the lowered limit."""
    import torch
    from transformers import BertConfig, BertModel

    home, made = tmp_path_factory.mktemp("tunes"), []
    sizes = {**SIZES, "vocab_size": 300, "hidden_size": 64, "type_vocab_size": 8}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        BertModel(BertConfig(**sizes), add_pooling_layer=False).save_pretrained(home / name)
        spec = ModelSpec("mine", Kind.TRANSFORMERS, str(home / name), vocab_size=300, seq_len=8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*LOW)
            made.append(export_model(spec, Store(home / "cache"), run_reference))
    return made


def test_two_fine_tunes_whose_weights_lie_outside_are_two_models(two_tunes):
    a, b = two_tunes
    assert [path.name for path in beside(a.onnx)] == ["model.onnx.data"]
    assert sha256_of(a.onnx) == sha256_of(b.onnx)  # the graph alone does not tell them apart
    assert a.sha256 != b.sha256
    assert not np.allclose(run_reference(a.onnx, BATCH), run_reference(b.onnx, BATCH), atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_large_model_is_built_in_every_precision(low_limit, two_tunes, tmp_path, precision):
    model = two_tunes[0]
    expected = run_reference(model.onnx, BATCH)
    engine = OnnxRuntime()
    properties = engine.build(model, Precision(precision), BATCH, tmp_path)
    with engine.load(tmp_path, properties, BATCH, 1) as loaded:
        found = loaded.embed(BATCH)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert bool(beside(tmp_path / ONNX_FILE)) == is_large_file(tmp_path / ONNX_FILE)
    onnx.checker.check_model(str(tmp_path / ONNX_FILE))


def test_layers_of_a_large_model_are_kept_in_fp32(low_limit, two_tunes, tmp_path):
    model = two_tunes[0]
    keeping = OnnxRuntime().keeping(model, Precision.INT8, BATCH)
    keeping.build(keeping.touched, tmp_path)
    assert beside(tmp_path / ONNX_FILE)
    found = run_reference(tmp_path / ONNX_FILE, BATCH)
    assert np.allclose(found, run_reference(model.onnx, BATCH), atol=1e-5)


def test_the_costs_of_a_large_model_are_known(two_tunes):
    nodes = read_graph(two_tunes[0].onnx).at((2, 8))
    assert sum(node.kind == "MatMul" for node in nodes) >= 6


def test_types_are_inferred_without_the_weights(two_tunes):
    whole = onnx.load(two_tunes[0].onnx)
    values = onnx.shape_inference.infer_shapes(whole).graph.value_info
    weights = {tensor.name for tensor in whole.graph.initializer}
    wanted = {v.name: v.type.tensor_type.elem_type for v in values if v.name not in weights}
    found = {v.name: v.type.tensor_type.elem_type for v in typed(whole).graph.value_info}
    assert found == wanted
    assert typed(whole).ByteSize() < whole.ByteSize() / 2


def test_a_model_is_one_file_again_once_it_is_small(two_tunes, tmp_path, monkeypatch):
    monkeypatch.setattr("enginegate.models.onnx_file.LIMIT_BYTES", 10)
    save_onnx(onnx.load(two_tunes[0].onnx), tmp_path / "m.onnx")
    assert beside(tmp_path / "m.onnx") == [tmp_path / "m.onnx.data"]
    monkeypatch.undo()
    model = onnx.load(tmp_path / "m.onnx")
    monkeypatch.setattr("enginegate.models.onnx_file.LIMIT_BYTES", 1 << 30)
    save_onnx(model, tmp_path / "m.onnx")
    assert not beside(tmp_path / "m.onnx")
    expected = run_reference(two_tunes[0].onnx, BATCH)
    assert np.array_equal(run_reference(tmp_path / "m.onnx", BATCH), expected)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("ENGINEGATE_LARGE"),
    reason="half an hour, 15 GB of memory and 20 GB of disk: set ENGINEGATE_LARGE=1",
)
def test_two_fine_tunes_over_2_gb(judge_case, make_case):
    table, models = make_case("two_large") / "pyproject.toml", []
    for name in "ab":
        table.write_text(
            re.sub('transformers = "."', f'transformers = "{name}"', table.read_text())
        )
        result, report = judge_case("two_large")
        assert result.ret == 0
        models.append(report["results"][0]["context"]["model_sha256"])
    assert models[0] != models[1]
    for precision in ("fp16", "int8"):
        _, report = judge_case("two_large", precision)
        assert report["results"][0]["embedding_verdict"] in ("pass", "flagged")


FACTORY = """
import torch

SIGN = 1.0


def scaled(values):
    return values * 1.0


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.table = torch.nn.Embedding(300, 16)
        self.first = False
        self.register_buffer("shift", torch.zeros(16), persistent=False)

    def forward(self, ids, mask):
        hidden = self.table(ids) + self.shift
        if self.first:
            return hidden[:, 0]
        weight = mask.unsqueeze(-1).float()
        return scaled((hidden * weight).sum(1) / weight.sum(1) * torch.tensor([SIGN] * 16).abs())


def make():
    return Tiny()
"""


@pytest.fixture
def factory(torch_loaded, tmp_path, monkeypatch):
    """Export what a module of the user's makes, after a text in it was replaced by another."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    spec = ModelSpec("m", Kind.FACTORY, "own_factory:make", vocab_size=300, seq_len=8)

    def export(old="", new=""):
        assert old in FACTORY
        monkeypatch.delitem(sys.modules, "own_factory", raising=False)
        (tmp_path / "own_factory.py").write_text(FACTORY.replace(old, new) if old else FACTORY)
        importlib.invalidate_caches()
        return export_model(spec, Store(tmp_path / "cache"), run_reference)

    return export


CHANGES = {
    "a constant": ("SIGN = 1.0", "SIGN = 2.0"),
    "an attribute": ("return Tiny()", "made = Tiny(); made.first = True; return made"),
    "a buffer": ("return Tiny()", "made = Tiny(); made.shift += 1; return made"),
    "a helper": ("return values * 1.0", "return values * 3.0"),
}


def test_a_changed_factory_is_another_model_and_an_unchanged_one_is_taken(factory):
    first = factory()
    found = {name: factory(*change).sha256 for name, change in CHANGES.items()}
    assert len({first.sha256, *found.values()}) == 1 + len(CHANGES)
    assert factory() == first
    assert factory(*CHANGES["a helper"]).sha256 == found["a helper"]  # from the cache, too


@pytest.mark.parametrize("seed", ["pass", "torch.seed()"])
def test_a_factory_that_makes_another_model_each_time_is_told_so(factory, seed):
    with pytest.raises(ModelError, match=r"made another model when it was called again.*seed it"):
        factory("torch.manual_seed(3)", seed)


@pytest.mark.usefixtures("quick_export")
def test_the_case_of_a_stale_factory(judge_case, make_case, tmp_path):
    own = f"--gate-engine-cache={tmp_path / 'cache'}"
    result, before = judge_case("stale_factory", "fp32", own)
    assert result.ret == 0
    path = make_case("stale_factory") / "encoder.py"
    text = path.read_text()
    path.write_text(text.replace('POOLING = "mean"', 'POOLING = "first"'))
    try:
        result, after = judge_case("stale_factory", "fp32", own)
    finally:
        path.write_text(text)
    assert result.ret == 0
    first, second = (r["results"][0]["context"]["model_sha256"] for r in (before, after))
    assert first != second


@pytest.mark.parametrize(
    "table",
    [
        {"transformers": "x", "allow_dropped": "classifier.*"},
        {"transformers": "x", "allow_dropped": [1]},
    ],
)
def test_allow_dropped_is_a_list_of_names(tmp_path, table):
    with pytest.raises(OptionError, match=r"allow_dropped = .* is not a list of weights"):
        specs_from({"m": table}, tmp_path)


def test_what_is_allowed_to_be_dropped_and_is_not_there_is_refused(bert):
    """The whole model is taken: nothing is left out by that name."""
    with pytest.raises(ModelError, match=r"allow_dropped names 2_Dense/\*, and no such weights"):
        load(bert, "2_Dense/*")
