"""Cases from the public record whose tokens or pooling were not the deployment's, and their kin."""

import json
import shutil

import numpy as np
import pytest

from enginegate.cache import Store
from enginegate.engines.onnxruntime import run_onnx
from enginegate.errors import ModelError
from enginegate.models.export import export_model, tokenize_with
from enginegate.models.spec import Kind, ModelSpec
from enginegate.models.tokens import TokenSettings
from enginegate.models.workload import make_workload, read_texts

pytestmark = pytest.mark.xdist_group("cases")
PROMPT = "represent this sentence for searching relevant passages: "


@pytest.fixture
def exported(case_cache):
    """The model of a folder as it is exported, with the tokens of 24 texts."""

    def export(kind, folder, **keys):
        cache = Store(keys.pop("cache", case_cache))
        model = export_model(ModelSpec("mine", kind, str(folder), **keys), cache, run_onnx)
        texts = read_texts(None)[1][:24]
        return model, make_workload("texts", texts, tokenize_with(model), model.inputs)

    return export


@pytest.fixture
def copied(make_case, tmp_path):
    """The model of a case, to be changed."""

    def copy(name):
        shutil.copytree(make_case(name) / "model", tmp_path / "model")
        return tmp_path / "model"

    return copy


def encoded(folder, texts, length, **how):
    """Embeddings as the model's authors compute them, with texts cut at `length` tokens."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.max_seq_length = min(length, model.max_seq_length)
    return model.encode(list(texts), show_progress_bar=False, **how)


def assert_as_deployed(model, workload, folder, **how):
    expected = encoded(folder, workload.texts, model.seq_len, **how)
    np.testing.assert_allclose(run_onnx(model.onnx, workload.evaluation), expected, atol=1e-5)


def change(path, **said):
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def passed(judged):
    """The one result of a run in which nothing failed."""
    run, report = judged
    assert run.ret == 0
    (result,) = report["results"]
    return result


def test_a_model_that_pads_left_passes_and_does_not_depend_on_its_padding(judge_case):
    result = passed(judge_case("left_padding"))
    assert result["accuracy"]["invariance"]["relative"] < 1e-4
    assert "with less padding" in result["accuracy"]["invariance"]["settings"]
    assert result["context"]["padding"] > 0.1


def test_a_padding_that_only_the_tokenizers_config_names(judge_case, make_case):
    context = passed(judge_case("pad_is_one"))["context"]
    assert context["padding"] > 0.1
    folder = make_case("pad_is_one")
    spec = ModelSpec("mine", Kind.ONNX, str(folder / "model.onnx"), inputs={"input_ids": "ids"})
    model = export_model(spec, Store(folder), run_onnx)
    ids = tokenize_with(model)(["word"]).ids
    assert ids[0, -1] == 1


@pytest.mark.usefixtures("quick_export")
def test_a_transformers_folder_with_a_modules_json_follows_it(judge_case, make_case, exported):
    assert passed(judge_case("folder_says_first"))["context"]["overruled"] == []
    folder = make_case("folder_says_first") / "model"
    model, workload = exported(Kind.TRANSFORMERS, folder)
    assert_as_deployed(model, workload, folder)


@pytest.mark.usefixtures("quick_export")
def test_a_length_that_the_folder_does_not_take_is_said(judge_case):
    run, report = judge_case("folder_says_sixteen")
    context = report["results"][0]["context"]
    said = "seq_len 64, where the model's own files cut at 16 tokens"
    assert context["overruled"] == [said]
    assert (context["limit"], context["seq_len"]) == (16, 64)
    run.stdout.fnmatch_lines([f"*the table says: {said}*", "decision *requested *executed *"])


@pytest.mark.usefixtures("quick_export")
def test_the_folders_own_length_is_the_default(make_case, exported):
    folder = make_case("folder_says_sixteen") / "model"
    model, workload = exported(Kind.SENTENCE_TRANSFORMERS, folder)
    assert (model.seq_len, model.overruled) == (16, ())
    assert workload.cut > 0
    assert_as_deployed(model, workload, folder)


@pytest.mark.usefixtures("quick_export")
def test_the_default_prompt_is_before_every_text(judge_case, make_case, exported):
    assert passed(judge_case("default_prompt"))["context"]["prompts"]["text"] == PROMPT
    folder = make_case("default_prompt") / "model"
    model, workload = exported(Kind.SENTENCE_TRANSFORMERS, folder)
    assert_as_deployed(model, workload, folder)
    plain, workload = exported(Kind.SENTENCE_TRANSFORMERS, folder, prompt="")
    assert plain.onnx == model.onnx
    assert_as_deployed(plain, workload, folder, prompt="")


@pytest.mark.usefixtures("quick_export")
def test_the_dimensions_that_the_folder_keeps(judge_case, make_case, exported):
    passed(judge_case("saved_dimensions"))
    folder = make_case("saved_dimensions") / "model"
    model, workload = exported(Kind.SENTENCE_TRANSFORMERS, folder)
    assert run_onnx(model.onnx, workload.evaluation).shape[1] == 16
    assert_as_deployed(model, workload, folder)
    model, workload = exported(Kind.SENTENCE_TRANSFORMERS, folder, truncate_dim=24)
    assert model.overruled == ("truncate_dim 24, where the model's own is 16",)
    assert_as_deployed(model, workload, folder, truncate_dim=24)


def test_pooling_of_the_table_replaces_the_folders_and_is_said(make_case, exported):
    folder = make_case("folder_says_first") / "model"
    model, workload = exported(Kind.TRANSFORMERS, folder, pooling="mean", normalize=False)
    assert model.overruled == (
        "pooling mean, where 1_Pooling/config.json says cls",
        "normalize false, where the model normalises",
    )
    lengths = np.linalg.norm(run_onnx(model.onnx, workload.evaluation), axis=1)
    assert abs(lengths - 1).max() > 0.1
    same, _ = exported(Kind.TRANSFORMERS, folder, pooling="first", normalize=True)
    assert same.overruled == ()


def test_the_first_and_the_last_token_are_real_ones_on_either_side(torch_loaded):
    import torch

    from enginegate.models.export import _pool

    hidden = torch.arange(8.0).reshape(2, 4, 1)
    right = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert _pool(hidden, right, "first", "right").flatten().tolist() == [0, 4]
    assert _pool(hidden, left, "first", "left").flatten().tolist() == [1, 4]
    assert _pool(hidden, right, "last", "right").flatten().tolist() == [2, 7]
    assert _pool(hidden, left, "last", "left").flatten().tolist() == [3, 7]


def test_a_left_padded_folder_keeps_its_last_token(copied, exported):
    folder = copied("folder_says_first")
    change(folder / "tokenizer_config.json", padding_side="left")
    change(folder / "1_Pooling" / "config.json", pooling_mode="lasttoken")
    model, workload = exported(Kind.SENTENCE_TRANSFORMERS, folder)
    assert model.tokens.padding_side == "left"
    assert_as_deployed(model, workload, folder)


@pytest.mark.usefixtures("quick_export")
def test_a_pooling_that_leaves_the_prompt_out_is_refused_with_a_prompt(copied, exported):
    folder = copied("default_prompt")
    change(folder / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(
        ModelError, match=r"leaves the tokens of a prompt out .* say `prompt = \"\"`"
    ):
        exported(Kind.SENTENCE_TRANSFORMERS, folder)
    model, workload = exported(Kind.SENTENCE_TRANSFORMERS, folder, prompt="")
    assert_as_deployed(model, workload, folder, prompt="")


def test_foreign_modules_are_not_followed(copied, exported):
    folder = copied("folder_says_first")
    parts = json.loads((folder / "modules.json").read_text())
    parts[1]["type"] = "custom.Pooling"
    (folder / "modules.json").write_text(json.dumps(parts))
    with pytest.raises(ModelError, match=r"names custom\.Pooling, which `transformers` cannot fol"):
        exported(Kind.TRANSFORMERS, folder)


@pytest.mark.usefixtures("quick_export")
def test_tokens_that_differ_from_the_librarys_are_never_taken(
    make_case, exported, tmp_path, monkeypatch
):
    folder = make_case("default_prompt") / "model"
    wrong = TokenSettings(limit=64, padding_side="left")
    monkeypatch.setattr("enginegate.models.tokens.settings_at", lambda *_: wrong)
    for kind in (Kind.SENTENCE_TRANSFORMERS, Kind.TRANSFORMERS):
        with pytest.raises(ModelError, match="does not give the tokens that the model itself"):
            exported(kind, folder, cache=tmp_path)
