"""The reference is doubted before an engine is blamed: by its runtime, and by its batch."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper

from enginegate.cache import Store
from enginegate.engines import embed_all, open_reference, run_reference
from enginegate.models import Exported, make_workload, probe_of, specs_from
from enginegate.models.nature import Nature
from enginegate.models.ready import ready_onnx
from enginegate.models.workload import default_corpus, hashed_tokenizer
from enginegate.results import DOUBT
from enginegate.session import opinions

OUTPUT = "sentence_embedding"


def exported(folder) -> Exported:
    spec = specs_from({"m": {"onnx": "tiny.onnx", "vocab_size": 200}}, folder)["m"]
    return ready_onnx(spec, Store(folder / "cache"))


def asked(model, folder):
    """The doubts about a model, and how often it was embedded to find them."""
    texts = default_corpus()[:90]
    workload = make_workload("w", texts, hashed_tokenizer(200, 8), model.inputs)
    engine, calls = open_reference(model.onnx, model.output, probe_of(workload), 1), []
    embeddings = embed_all(engine, workload.evaluation)

    class Counted:
        executed = engine.executed

        def embed(self, batch):
            calls.append(len(batch))
            return engine.embed(batch)

    store = Store(folder / "cache")
    return opinions.second_opinions(store, Counted(), model, workload, embeddings), len(calls)


@pytest.fixture
def tiny(tmp_path, load_tiny):
    load_tiny.write_tiny_onnx(tmp_path / "tiny.onnx")
    return tmp_path


def test_a_sound_reference_is_not_doubted_and_is_tried_once(tiny):
    found, calls = asked(exported(tiny), tiny)
    assert found == ()
    assert calls > 0
    assert asked(exported(tiny), tiny) == ((), 0)


def mixing(folder):
    """The tiny model with every embedding divided by the largest of its batch."""
    model = onnx.load(folder / "tiny.onnx")
    model.graph.node[-1].output[0] = "own"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["own"], ["most"], keepdims=0),
            helper.make_node("Div", ["own", "most"], [OUTPUT]),
        ]
    )
    onnx.save(model, str(folder / "tiny.onnx"))
    return folder


def test_a_file_whose_embeddings_change_with_the_batch_is_at_fault(tiny):
    found, _ = asked(exported(mixing(tiny)), tiny)
    (doubt,) = found
    assert doubt.startswith(
        f"{DOUBT}the fault is the file's, not an engine's: an embedding changes"
    )
    assert asked(exported(tiny), tiny) == (found, 0)


def test_a_runtime_that_breaks_what_it_optimises_is_at_fault(tiny, monkeypatch):
    def plain(path, batch, *, optimised):
        assert not optimised
        return run_reference(path, batch, optimised=False) * np.float32(1.001)

    monkeypatch.setattr(opinions, "run_reference", plain)
    found, _ = asked(exported(tiny), tiny)
    (doubt,) = found
    assert doubt.startswith(
        f"{DOUBT}without ONNX Runtime's graph optimisations it changes by 0.001"
    )
    assert "no engine's" in doubt


def test_nan_without_optimisations_is_a_doubt(tiny, monkeypatch):
    def plain(path, batch, *, optimised):
        return run_reference(path, batch, optimised=optimised) * np.float32("nan")

    monkeypatch.setattr(opinions, "run_reference", plain)
    assert len(asked(exported(tiny), tiny)[0]) == 1


def test_the_integers_of_a_quantised_file_may_be_fused(tiny, monkeypatch):
    model = dataclasses.replace(exported(tiny), nature=Nature(kind="int8"))
    monkeypatch.setattr(opinions, "run_reference", None)
    assert asked(model, tiny)[0] == ()


def test_unoptimised_is_another_session(tiny):
    batch = {name: np.ones((2, 8), np.int64) for name in ("input_ids", "attention_mask")}
    plain = run_reference(tiny / "tiny.onnx", batch, optimised=False)
    np.testing.assert_allclose(plain, run_reference(tiny / "tiny.onnx", batch), rtol=1e-5)


def test_a_run_blames_the_file_and_not_the_engine(project):
    mixing(project.path)
    result = project.judge("-k", "embeddings or batch")
    result.stdout.fnmatch_lines(
        ["*fail: an embedding changes*the reference is in doubt: the fault is the file's*"]
    )
    result.stdout.fnmatch_lines(["* 1 failed, * 1 flagged in *"])
