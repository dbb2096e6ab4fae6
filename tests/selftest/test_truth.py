"""Whether the reference is the model: planted differences are caught and named, clean ones pass."""

import contextlib
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from enginegate.accuracy.truth import against_truth, apart
from enginegate.cache import Store
from enginegate.engines import run_reference
from enginegate.engines.quantize import to_fp16
from enginegate.errors import ModelError, OptionError
from enginegate.models import (
    Kind,
    ModelSpec,
    export_model,
    make_workload,
    read_texts,
    specs_from,
    tokenize_with,
    truth_of,
)
from enginegate.models.causes import find_cause
from enginegate.models.tokens import file_tokenizer
from enginegate.models.truth import parts_of
from enginegate.session.truth import judged_by_truth
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

pytestmark = pytest.mark.xdist_group("cases")
PROMPT = "the name: "
LENGTH = 16
INPUTS = {"input_ids": "ids", "attention_mask": "mask"}
TEXTS = read_texts(None)[1][:36]


class Model:
    """A small model as its authors published it, and files of it."""

    def __init__(self, folder, shapes):
        self.folder, self.shapes = folder, shapes
        self.source = folder / "base"
        self.size = shapes.write_tokenizer(self.source)
        self.body = shapes.bert(self.size, folder=self.source, hidden=32, layers=1)

    def published(self, name, pooling="cls", **how):
        """A sentence-transformers folder: its first token, normalised."""
        from sentence_transformers import models as parts

        path = self.folder / name
        if not path.exists():
            how = {"more": [parts.Normalize()], "limit": 64, **how}
            self.shapes.sentence_folder(path, self.source, pooling=pooling, **how)
        return path

    def exported(self, pooling):
        path = self.folder / f"{pooling}.onnx"
        if not path.exists():
            self.shapes.export(self.shapes.Pooled(self.body, pooling), path)
        return path

    def spec(self, truth, onnx="mean.onnx", **keys):
        tokenizer = str(self.source / "tokenizer.json")
        source = str(self.folder / onnx)
        keys = {"truth": str(truth), "tokenizer": tokenizer, "seq_len": LENGTH, **keys}
        return ModelSpec("mine", Kind.ONNX, source, **keys)

    def workload(self, tokenizer="tokenizer.json", length=LENGTH):
        tokenize = file_tokenizer(self.source / tokenizer, length)
        return make_workload("texts", TEXTS, tokenize, INPUTS)

    def embed(self, texts, pooling="first", normalize=True, **how):
        """An embedding of one's own making: `how` goes to the tokenizer."""
        import torch
        from transformers import AutoTokenizer

        how = {"max_length": LENGTH, "padding": "max_length", "truncation": True, **how}
        tokenizer = AutoTokenizer.from_pretrained(self.source)
        batch = tokenizer(texts, return_tensors="pt", **how)
        with torch.inference_mode():
            module = self.shapes.Pooled(self.body, pooling, normalize)
            return module(batch["input_ids"], batch["attention_mask"]).numpy()


@pytest.fixture(scope="module")
def small(tmp_path_factory, shapes):
    return Model(tmp_path_factory.mktemp("truth"), shapes)


def truth_at(spec, place, workload):
    found = truth_of(spec, Store(place), workload)
    assert found
    return found


@pytest.fixture
def cause(small, tmp_path):
    """The cause that is found for a reference of one's own making."""

    def find(truth, reference, workload=None, **keys):
        workload = workload or small.workload()
        spec, store = small.spec(truth, **keys), Store(tmp_path)
        known = truth_at(spec, tmp_path, workload)
        pipeline = parts_of(spec, store, workload)
        assert pipeline
        rows = slice(0, 16)
        vectors = np.asarray(reference)[rows]
        return find_cause(pipeline, workload.texts[rows], known.embeddings[rows], vectors, apart)

    return find


PLANTED: dict[str, Any] = {
    "mean": (
        {"pooling": "mean"},
        "the file pools by mean, the model by the first token (1_Pooling/config.json)",
    ),
    "all positions": ({"pooling": "all positions"}, "the file pools by all positions, padding"),
    "last position": ({"pooling": "last position"}, "the file pools by the last position"),
    "not normalised": (
        {"normalize": False},
        "the file does not normalise, the model does (2_Normalize/config.json)",
    ),
    "no special tokens": ({"add_special_tokens": False}, "lack the special tokens"),
    "cut at 8": ({"max_length": 8}, "texts are cut at 8 tokens, the model's at 16"),
    "padded on the left": ({"padding_side": "left"}, "the reference pads on the left, the model"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_named(cause, small, name):
    how, said = PLANTED[name]
    texts = list(small.workload().texts)
    found = cause(small.published("cls"), small.embed(texts, **how))
    assert found.found
    assert said in found.text


def test_a_prompt_is_named(cause, small):
    config = {"prompts": {"query": PROMPT, "passage": "text: "}, "default_prompt_name": "query"}
    truth = small.published("prompted", config=config)
    texts = small.workload().texts
    ways = {
        "": f"texts have no prompt, the model's begin with {PROMPT!r}",
        PROMPT + PROMPT: f"have the prompt {PROMPT!r} twice",
        "text: ": "begin with the prompt 'text: '",
    }
    for begin, said in ways.items():
        found = cause(truth, small.embed([begin + text for text in texts]))
        assert found.found
        assert said in found.text


def test_dimensions_and_capitals_are_named(cause, small):
    texts = small.workload().texts
    found = cause(small.published("short", config={"truncate_dim": 8}), small.embed(list(texts)))
    assert "the file keeps all dimensions, the model 8" in found.text
    rules = json.loads((small.source / "tokenizer.json").read_text())
    rules["normalizer"]["lowercase"] = False
    (small.source / "kept.json").write_text(json.dumps(rules))
    workload = small.workload("kept.json")
    tokens = [workload.evaluation[name] for name in INPUTS]
    found = cause(small.published("cls"), on_tokens(small, tokens), workload)
    assert "keep their capitals, the model lower-cases (tokenizer.json)" in found.text


def on_tokens(small, tokens):
    import torch

    with torch.inference_mode():
        module = small.shapes.Pooled(small.body, "first")
        return module(*map(torch.from_numpy, tokens)).numpy()


def test_a_dense_layer_left_out_is_named(cause, small):
    from sentence_transformers import models as parts

    layers = [parts.Dense(32, 32)]
    truth = small.published("dense", more=layers)
    texts = list(small.workload().texts)
    found = cause(truth, small.embed(texts, normalize=False))
    assert "leaves out the Dense layer that the model has (2_Dense/config.json)" in found.text


def test_other_weights_have_no_cause_and_the_nearest_is_told(cause, small):
    rng = np.random.default_rng(0)
    found = cause(small.published("cls"), rng.normal(size=(24, 32)).astype(np.float32))
    assert not found.found
    assert "single changes of the truth gives the reference; nearest, " in found.text


def test_a_transformers_folder_is_pooled_by_its_table(small, tmp_path):
    workload = small.workload()
    texts = list(workload.texts)
    spec = small.spec(small.source, pooling="mean", normalize=True)
    found = truth_at(spec, tmp_path, workload)
    assert found.by == "its own tokenizer and model"
    assert found.notes == ("texts cut at 16 tokens by `seq_len`, not at 512",)
    assert against_truth(small.embed(texts, "mean"), found.embeddings, "").text.startswith(
        "the reference is the model: worst cosine 1.000000"
    )


def test_where_the_table_does_not_say_the_model_cuts_by_its_own_files(small, tmp_path):
    workload = small.workload(length=8)  # tokens of a tokenizer that cuts by itself
    found = truth_at(small.spec(small.published("cls")), tmp_path, workload)
    assert found.notes == ()
    whole = small.embed(list(workload.texts), max_length=64)
    assert against_truth(whole, found.embeddings, "").judgement.verdict is Verdict.PASS


CONFIG = {
    "prompts": {"query": PROMPT},
    "default_prompt_name": "query",
    "truncate_dim": 24,
}
OVERRULING: dict[str, Any] = {
    "nothing": ({}, ["texts cut at 32 tokens by default, not at 64"]),
    "length": ({"seq_len": 16}, ["texts cut at 16 tokens by `seq_len`, not at 64"]),
    "its own length": ({"seq_len": 64}, []),
    "prompt": (
        {"seq_len": 64, "prompt": "text: "},
        [f'the table says prompt "text: " of a text, where the model\'s own is "{PROMPT}"'],
    ),
    "dimensions": (
        {"seq_len": 64, "truncate_dim": 8},
        ["the table says truncate_dim 8, where the model's own is 24"],
    ),
    "pooling": (
        {"seq_len": 64, "pooling": "last", "normalize": False},
        [
            "the table says pooling last, where 1_Pooling/config.json says cls",
            "the table says normalize false, where the model normalises",
        ],
    ),
    "head": (
        {"seq_len": 64, "head": 4, "pooling": "first"},
        [
            "the table says a head of width 4, where the model has a modules.json: "
            "it is not followed",
        ],
    ),
}


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("name", OVERRULING)
def test_where_a_table_overrules_its_folder_the_truth_follows_and_says_so(small, tmp_path, name):
    keys, notes = OVERRULING[name]
    truth = small.published("overruled", config=CONFIG)
    spec, store = ModelSpec("mine", Kind.TRANSFORMERS, str(truth), **keys), Store(tmp_path)
    model = export_model(spec, store, run_reference)
    workload = make_workload("texts", TEXTS, tokenize_with(model), model.inputs)
    vectors = run_reference(model.onnx, workload.evaluation)
    found = judged_by_truth(spec, store, workload, vectors, nothing)
    assert found.judgement.verdict is Verdict.PASS
    assert list(found.notes) == notes
    if "seq_len" in keys and notes:  # by the folder alone it is another model
        plain = replace(spec, prompt=None, truncate_dim=None, pooling=None, normalize=None)
        plain = replace(plain, head=None, seq_len=64)
        other = judged_by_truth(plain, store, workload, vectors, nothing)
        assert other.judgement.verdict is Verdict.FAIL


UNSTATED = {
    "first": ("first", True, "pooled by the first token, normalised: not stated by its folder"),
    "mean": ("mean", False, "pooled by mean: not stated by its folder, found by trying"),
}


@pytest.mark.parametrize("name", UNSTATED)
def test_a_pooling_that_nobody_states_is_found_by_trying_and_said(small, tmp_path, name):
    pooling, normalize, said = UNSTATED[name]
    workload, store = small.workload(), Store(tmp_path)
    vectors = small.embed(list(workload.texts), pooling, normalize)
    found = judged_by_truth(small.spec(small.source), store, workload, vectors, nothing)
    assert found.judgement.verdict is Verdict.PASS
    assert said in found.text


def test_no_pooling_makes_another_model_the_model(small, tmp_path):
    workload, rng = small.workload(), np.random.default_rng(0)
    other = rng.normal(size=(len(workload.texts), 32)).astype(np.float32)
    spec = small.spec(small.source)
    found = judged_by_truth(spec, Store(tmp_path), workload, other, nothing)
    assert found.judgement.verdict is Verdict.FAIL
    assert "and none of the first token, the last token, mean gives the reference" in found.text


def test_a_stated_pooling_is_not_sought(small, tmp_path):
    workload = small.workload()
    vectors = small.embed(list(workload.texts), "mean")
    spec = small.spec(small.published("cls"))
    found = judged_by_truth(spec, Store(tmp_path), workload, vectors, nothing)
    assert found.judgement.verdict is Verdict.FAIL


def test_a_cause_is_sought_once(small, tmp_path, monkeypatch):
    workload, store, spec = small.workload(), Store(tmp_path), small.spec(small.published("cls"))
    vectors = small.embed(list(workload.texts), "mean")
    first = judged_by_truth(spec, store, workload, vectors, nothing)
    monkeypatch.setattr("enginegate.session.truth.find_cause", None)
    assert judged_by_truth(spec, store, workload, vectors, nothing) == first
    with pytest.raises(TypeError):  # another reference has another
        judged_by_truth(spec, store, workload, 2 * vectors, nothing)


def test_a_rounded_file_is_judged_by_the_limits_of_its_precision(small, tmp_path):
    workload, rng = small.workload(), np.random.default_rng(0)
    vectors = small.embed(list(workload.texts))
    off = rng.uniform(-1, 1, vectors.shape).astype(np.float32) * np.abs(vectors).max()
    spec = small.spec(small.published("cls"))

    def judged(share, precision):
        found = vectors + share * off
        return judged_by_truth(spec, Store(tmp_path), workload, found, nothing, precision)

    assert judged(1e-3, Precision.FP32).judgement.verdict is Verdict.FAIL
    half = judged(1e-3, Precision.FP16)
    assert half.judgement.verdict is Verdict.PASS
    assert "by encode(), by the limits of fp16, as the file is" in half.text
    assert judged(1e-2, Precision.FP16).judgement.verdict is Verdict.FAIL
    assert judged(1e-2, Precision.INT8).judgement.verdict is Verdict.PASS


def test_what_is_told_of_a_table_is_told_once(small):
    notes = ("the table says pooling last, where x says cls", "texts cut at 8 tokens")
    found = against_truth(np.eye(3), np.eye(3), "encode()", notes)
    assert "pooling" not in found.beside(("pooling last, where x says cls",))
    assert "texts cut at 8 tokens" in found.beside(("pooling last, where x says cls",))
    assert "pooling" in found.beside(())


def other_tokenizer(small, place):
    """The model's own but for two words that have each other's numbers."""
    place.mkdir()
    rules = json.loads((small.source / "tokenizer.json").read_text())
    vocab = rules["model"]["vocab"]
    vocab["the"], vocab["of"] = vocab["of"], vocab["the"]
    (place / "tokenizer.json").write_text(json.dumps(rules))
    config = (small.source / "tokenizer_config.json").read_text()
    (place / "tokenizer_config.json").write_text(config)
    return place / "tokenizer.json"


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("named", ["file", "folder"])
@pytest.mark.parametrize("kind", [Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS])
def test_another_tokenizer_in_the_table_is_not_the_models(small, tmp_path, named, kind):
    file = other_tokenizer(small, tmp_path / "other")
    tokenizer = str(file if named == "file" else file.parent)
    found = judged_with(small, tmp_path, tokenizer, kind)
    assert found.judgement.verdict is Verdict.FAIL
    assert "tokens are not those of the model's own tokenizer: look at `tokenizer`" in found.cause


@pytest.mark.usefixtures("quick_export")
def test_a_copy_of_the_models_own_tokenizer_is_the_models(small, tmp_path):
    file = str(small.source / "tokenizer.json")
    found = judged_with(small, tmp_path, file, Kind.TRANSFORMERS)
    assert found.judgement.verdict is Verdict.PASS
    assert found.by == "its own tokenizer and model"


def judged_with(small, place, tokenizer, kind):
    source = small.source if kind is Kind.TRANSFORMERS else small.published("cls")
    keys = {"tokenizer": tokenizer, "seq_len": LENGTH}
    spec, store = ModelSpec("mine", kind, str(source), **keys), Store(place / "store")
    model = export_model(spec, store, run_reference)
    workload = make_workload("texts", TEXTS, tokenize_with(model), model.inputs)
    vectors = run_reference(model.onnx, workload.evaluation)
    return judged_by_truth(spec, store, workload, vectors, nothing)


def test_other_widths_fail_by_both_numbers():
    found = against_truth(np.eye(3), np.eye(4)[:3], "encode()")
    assert found.faults == (
        "the reference is not the model: 3 dimensions instead of 4, by encode()",
    )


def test_a_file_with_a_truth_that_is_not_there_says_which_key(small, tmp_path):
    with pytest.raises(ModelError, match=r"correct `truth` in \[tool.enginegate.models.mine\]"):
        truth_of(small.spec("no/such/folder"), Store(tmp_path), small.workload())


def test_truth_is_for_files_only(tmp_path):
    with pytest.raises(OptionError, match=r"truth is for onnx; remove it"):
        specs_from({"mine": {"transformers": "x", "truth": "y"}}, tmp_path)


def test_code_beside_a_truth_runs_only_where_it_may(tmp_path):
    table = {"onnx": "x.onnx", "truth": "y", "trust_remote_code": True}
    assert specs_from({"mine": table}, tmp_path)["mine"].trust_remote_code
    del table["truth"]
    with pytest.raises(OptionError, match=r"of use for an \.onnx file without `truth`"):
        specs_from({"mine": table}, tmp_path)


def test_a_kept_truth_is_read_without_torch(small, tmp_path):
    """In a process of its own: this one has loaded torch."""
    spec, workload = small.spec(small.published("cls")), small.workload()
    kept = truth_at(spec, tmp_path, workload)
    script = f"""
import sys
from pathlib import Path
from enginegate.cache import Store
from enginegate.models import Kind, ModelSpec, make_workload, read_texts, truth_of
from enginegate.models.tokens import file_tokenizer
spec = ModelSpec("mine", Kind.ONNX, {spec.source!r}, truth={spec.truth!r},
                 tokenizer={spec.tokenizer!r}, seq_len={LENGTH})
tokenize = file_tokenizer(Path(spec.tokenizer), {LENGTH})
workload = make_workload("texts", read_texts(None)[1][:36], tokenize, {INPUTS})
found = truth_of(spec, Store(Path({str(tmp_path)!r})), workload)
assert not {{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)
print(found.by, float(abs(found.embeddings).sum()))
"""
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["encode()", str(float(abs(kept.embeddings).sum()))]


# Whole runs


@pytest.fixture(scope="module")
def files(small):
    """Files of the model, exported before any run in this process, which unloads parts of torch."""
    return {pooling: small.exported(pooling) for pooling in ("first", "mean")}


@pytest.fixture
def judge(small, files, pytester, monkeypatch):
    """Run the ready suite on a file of the small model: its outcome and its report."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def run(onnx, *arguments, **keys):
        keys = {
            "onnx": str(files[onnx]),
            "tokenizer": str(small.source / "tokenizer.json"),
            "seq_len": LENGTH,
            **keys,
        }
        small.shapes.write_project(pytester.path, **keys)
        result = pytester.runpytest_inprocess(
            f"--rootdir={pytester.path}",
            "--pyargs",
            "enginegate.suite",
            "--precision=fp32,fp16",
            "--gate-report-json=report.json",
            "--gate-report-markdown=report.md",
            "--gate-engine-cache=cache",
            *arguments,
        )
        return result, json.loads((pytester.path / "report.json").read_text())

    return run


FAST = ("-k", "not (slower or served or load)")


def test_a_file_that_is_the_model_passes(judge, small, pytester):
    result, report = judge("first", *FAST, truth=str(small.published("cls")))
    assert result.ret == 0
    outcomes = result.parseoutcomes()  # fp16 is flagged where the processor lacks it
    assert (outcomes["passed"] + outcomes.get("flagged", 0), "failed" in outcomes) == (5, False)
    said = "the reference is the model: worst cosine 1.000000"
    result.stdout.fnmatch_lines(
        [f"*threads: *; {said}, by encode(); texts cut at 16 tokens by `seq_len`*"]
    )
    assert [found["truth"]["judgement"]["verdict"] for found in report["results"]] == ["pass"] * 2
    assert said in (pytester.path / "report.md").read_text()


def test_a_file_that_is_not_the_model_blocks_every_engine(judge, small, pytester):
    result, report = judge("mean", "-v", *FAST, truth=str(small.published("cls")))
    assert result.ret == 10
    said = "the file pools by mean, the model by the first token (1_Pooling/config.json)"
    result.stdout.fnmatch_lines(
        [
            "*test_reference_is_the_model[[]mine] FAILED*",
            "*test_same_embeddings[[]mine-openvino-fp32] FAILED*",
            f"*mine: fail: the reference is not the model: *by encode()*{said}*",
        ]
    )
    assert "--gate-blame" not in result.stdout.str()
    for found in report["results"]:
        assert found["embedding_verdict"] == "fail"
        assert found["truth"]["cause"] == said
    markdown = (pytester.path / "report.md").read_text()
    assert "2 blocked" in markdown
    assert "the reference is not the model" in markdown


def test_a_file_in_fp16_is_judged_as_one(judge, small, files, pytester):
    half = pytester.path / "half.onnx"
    to_fp16(files["first"], half)
    files["half"] = half
    asked = ("-k", "reference_is or same_embeddings")
    result, report = judge("half", *asked, truth=str(small.published("cls")))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*the reference is the model*by the limits of fp16, as the file*"])
    assert {found["truth"]["judgement"]["verdict"] for found in report["results"]} == {"pass"}


def test_it_fails_too_where_its_test_is_left_out(judge, small):
    result, report = judge("mean", "-k", "independent", truth=str(small.published("cls")))
    result.assert_outcomes(passed=2, deselected=result.parseoutcomes()["deselected"])
    assert result.ret == 10
    assert {found["embedding_verdict"] for found in report["results"]} == {"fail"}


def test_a_file_without_a_truth_is_taken_as_the_model(judge, small):
    result, report = judge("mean", "-rs", *FAST)
    assert result.ret == 0
    said = "the file is taken as the model: no `truth` in its table"
    result.stdout.fnmatch_lines([f"*SKIPPED*{said}*"])
    assert [found["truth"]["judgement"]["reasons"] for found in report["results"]] == [[said]] * 2


def test_an_export_that_is_stale_is_not_its_factory(small, tmp_path, monkeypatch):
    """What a factory's code does is computed in every run."""
    (tmp_path / "stale_encoder.py").write_text(
        "import torch\n\nGAIN = 1.0\n\n\n"
        "class Words(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n"
        "        self.words = torch.nn.Embedding(5000, 8)\n\n"
        "    def forward(self, ids, mask):\n"
        "        return (self.words(ids) * mask.unsqueeze(-1)).sum(1) * GAIN + GAIN\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stale_encoder = importlib.import_module("stale_encoder")
    spec = ModelSpec("mine", Kind.FACTORY, "stale_encoder:Words", seq_len=LENGTH)
    store, workload = Store(tmp_path / "cache"), small.workload()
    then = truth_at(spec, store.root, workload)
    monkeypatch.setattr(stale_encoder, "GAIN", 2.0)
    found = judged_by_truth(spec, store, workload, then.embeddings, nothing)
    assert found.judgement.verdict is Verdict.FAIL
    assert "by its module on the same tokens" in found.text


def nothing(_task):
    return contextlib.nullcontext()


def test_a_model_is_judged_right_before_its_engines(pytester, load_tiny):
    """So that its reference is prepared once, whatever order pytest finds the tests in."""
    load_tiny.write_tiny_onnx(pytester.path / "tiny.onnx")
    table = 'onnx = "tiny.onnx"\nvocab_size = 200\nseq_len = 8\n'
    tables = (f"[tool.enginegate.models.{name}]\n{table}" for name in ("a", "b"))
    pytester.makepyprojecttoml("\n".join(["[tool.enginegate]", 'model = ["a", "b"]', *tables]))
    result = pytester.runpytest_inprocess(
        f"--rootdir={pytester.path}",
        *("--pyargs", "enginegate.suite", "--precision=fp32,fp16", "--collect-only", "-q"),
        *("-k", "reference_is or same_embeddings"),
    )
    found = [line.partition("[")[2] for line in result.outlines if "::" in line]
    models = [name.partition("]")[0].partition("-")[0] for name in found]
    assert models == ["a", "a", "a", "b", "b", "b"]
    assert [found[0], found[3]] == ["a]", "b]"]
