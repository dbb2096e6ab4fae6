"""A model's folder runs no code unless its table says so, and then every output says it."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import pytest

from enginegate.cache import Store
from enginegate.engines import run_reference
from enginegate.errors import ModelError, OptionError
from enginegate.models import OWN_CODE, Kind, ModelSpec, export_model, specs_from
from enginegate.models.sources import content_key, locate
from enginegate.report.output import report_files
from enginegate.report.text import summary

from .reports import context, result, write_report

OWN = """
from pathlib import Path
from transformers import BertConfig, BertModel
Path({ran!r}).touch()

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""
MODULES = {
    "": "sentence_transformers.models.Transformer",
    "1_Pooling": "sentence_transformers.models.Pooling",
}


class Touch:
    """A pickle that leaves a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def ran(tmp_path):
    """The file that is there once planted code has run."""
    return tmp_path / "ran"


@pytest.fixture
def folder(save_small_bert, tmp_path):
    return save_small_bert(tmp_path / "folder")


def pipeline(folder, **modules):
    """The folder as one of sentence-transformers."""
    found = {**MODULES, **modules}
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": kind}
        for n, (path, kind) in enumerate(found.items())
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(295))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def export(kind, folder, tmp_path, **other):
    spec = ModelSpec("mine", kind, str(folder), vocab_size=300, seq_len=8, **other)
    return export_model(spec, Store(tmp_path / "cache"), run_reference)


def with_pickle(folder, ran):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(ran)))


@pytest.mark.parametrize("kind", [Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS])
def test_a_pickle_alone_is_one_error_and_is_never_read(kind, folder, ran, tmp_path):
    with_pickle(pipeline(folder), ran)
    assert export(kind, folder, tmp_path).weights == "from folder"  # read from safetensors
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"mine: .*pytorch_model\.bin is a pickle.*save it again"):
        export(kind, folder, tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("kind", [Kind.TRANSFORMERS, Kind.SENTENCE_TRANSFORMERS])
def test_a_module_that_falls_back_to_a_pickle_is_stopped(folder, ran, tmp_path, kind):
    pipeline(folder, **{"2_Dense": "sentence_transformers.models.Dense"})
    (folder / "2_Dense").mkdir()
    sizes = {"in_features": 32, "out_features": 4, "bias": True}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(sizes))
    with_pickle(folder / "2_Dense", ran)
    with pytest.raises(ModelError, match=r"2_Dense/pytorch_model\.bin is a pickle"):
        export(kind, folder, tmp_path)
    assert not ran.exists()


def with_own_code(folder, ran, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(tmp_path / "m")
    (folder / "own.py").write_text(OWN.format(ran=str(ran)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own"}
    config |= {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))


def test_code_in_the_folder_runs_only_where_the_table_says_so(folder, ran, tmp_path, monkeypatch):
    with_own_code(folder, ran, monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=r"say `trust_remote_code = true` in .tool.enginegate.mod"):
        export(Kind.TRANSFORMERS, folder, tmp_path)
    assert not ran.exists()
    found = export(Kind.TRANSFORMERS, folder, tmp_path, trust_remote_code=True)
    assert ran.exists()
    assert found.weights == f"from folder{OWN_CODE}"


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (Kind.SENTENCE_TRANSFORMERS, "modules.json"),
        (Kind.SENTENCE_TRANSFORMERS, "router_config.json"),
        (Kind.TRANSFORMERS, "router_config.json"),
    ],
)
def test_a_pipeline_of_foreign_classes_is_one_error(
    folder, ran, tmp_path, kind, place, monkeypatch
):
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copy(tmp_path / "evil.py", folder)
    if place == "modules.json":
        pipeline(folder, **{"2_Own": "evil.Module"})
    else:
        pipeline(folder, **{"2_Router": "sentence_transformers.models.Router"})
        (folder / "2_Router").mkdir()
        types = {"types": {"query_0": "evil.Module"}, "structure": {"query": ["query_0"]}}
        (folder / "2_Router" / place).write_text(json.dumps(types))
    with pytest.raises(ModelError, match="without running code of its own"):
        export(kind, folder, tmp_path)
    assert not ran.exists()


def test_the_hub_is_asked_for_code_only_where_it_may_run(monkeypatch, tmp_path, torch_loaded):
    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for trusted in (False, True):
        spec = ModelSpec("m", Kind.TRANSFORMERS, "a/b", trust_remote_code=trusted)
        with pytest.raises(ModelError):
            locate(spec, Store(tmp_path))
    assert ["*.py" in patterns for patterns in asked] == [False, True]


def test_trust_is_part_of_the_key_only_where_it_is_given(tmp_path):
    keys = [
        content_key(ModelSpec("m", Kind.TRANSFORMERS, "x", trust_remote_code=trusted), None)
        for trusted in (False, True)
    ]
    assert keys[1]["settings"].pop("trust_remote_code") is True
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "table",
    [
        {"transformers": "x", "trust_remote_code": "yes"},
        {"transformers": "x", "trust_remote_code": 1},
    ],
)
def test_trust_is_true_or_false(tmp_path, table):
    with pytest.raises(OptionError, match=r"trust_remote_code = .* is not true or false"):
        specs_from({"m": table}, tmp_path)


def test_every_output_says_that_code_may_run(tmp_path):
    marked_context = dataclasses.replace(context(), weights=f"from x{OWN_CODE}")
    trusted = result(context=marked_context)
    for found, says in ((trusted, True), (result(), False)):
        saved = write_report(tmp_path / "run.json", [found])
        page, comment = tmp_path / "x.html", tmp_path / "x.md"
        text = list(report_files([saved], page, comment, tmp_path, text=True))
        outputs = [saved.read_text(), page.read_text(), comment.read_text()]
        outputs += ["\n".join(text), "\n".join(line.text for line in summary([found], 120))]
        marked = [output.replace("\\", "").count("trust_remote_code") > 0 for output in outputs]
        assert marked == [says] * 5
