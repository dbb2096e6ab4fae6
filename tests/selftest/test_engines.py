"""Engines of the real runtimes: what they give, and the proof of what they ran."""

import dataclasses
import tracemalloc

import numpy as np
import onnx
import pytest

from enginegate.cache import Store
from enginegate.engines import build as building
from enginegate.engines.api import embed_all
from enginegate.engines.build import Built, build_engine, choose_best, execution_flags
from enginegate.engines.onnxruntime import open_onnx
from enginegate.engines.openvino import OpenVino
from enginegate.engines.registry import get_backend
from enginegate.errors import EngineError
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.variants import Precision, Variant

ROLES = {"input_ids": "ids", "attention_mask": "mask"}


@pytest.fixture
def workload():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)


@pytest.fixture
def exported(tiny_onnx):
    spec = ModelSpec("tiny", Kind.ONNX, str(tiny_onnx), vocab_size=200, seq_len=8)
    return Exported(spec, tiny_onnx, "hash", "from tiny.onnx", None, ROLES, "sentence_embedding")


@pytest.fixture
def reference(exported, workload):
    engine = open_onnx(exported.onnx, exported.output, workload.batch(2), threads=1)
    assert engine.executed.matmuls == {"f32": 1}
    return embed_all(engine, workload.evaluation)


BUILT = [
    ("onnxruntime", Precision.FP32, 1e-6),
    ("onnxruntime", Precision.FP16, 5e-3),
    ("onnxruntime", Precision.INT8, 0.5),
    ("openvino", Precision.FP32, 1e-5),
    ("openvino", Precision.BF16, 0.2),
]


@pytest.mark.parametrize(("backend", "precision", "tolerance"), BUILT)
def test_every_engine_gives_the_references_embeddings(
    tmp_path, exported, workload, reference, backend, precision, tolerance
):
    built = build_engine(Store(tmp_path), Variant("tiny", backend, precision), exported, workload)
    with built.load(workload, threads=1) as engine:
        found = embed_all(engine, workload.evaluation)
        assert sum(engine.executed.matmuls.values()) >= 1
    assert found.dtype == np.float32
    assert np.abs(found - reference).max() < tolerance
    assert built.size_bytes > 0


def test_weights_in_a_file_beside_the_onnx_come_along(tmp_path, exported, workload, reference):
    graph = onnx.load(str(exported.onnx))
    outside = tmp_path / "outside" / "model.onnx"
    outside.parent.mkdir()
    onnx.save(graph, str(outside), save_as_external_data=True, location="w", size_threshold=0)
    moved = dataclasses.replace(exported, onnx=outside)
    variant = Variant("tiny", "onnxruntime", Precision.FP32)
    built = build_engine(Store(tmp_path / "store"), variant, moved, workload)
    with built.load(workload, threads=1) as engine:
        assert np.abs(embed_all(engine, workload.evaluation) - reference).max() < 1e-6


def test_bf16_under_the_name_fp16_is_caught(tmp_path, exported, workload, monkeypatch):
    """OpenVINO takes the f16 hint and silently runs bf16, or f32, where the CPU lacks f16."""
    variant = Variant("tiny", "openvino", Precision.FP16)
    if OpenVino().stand_in(Precision.FP16) is None:
        pytest.skip("this CPU computes fp16: nothing runs under a wrong name")
    monkeypatch.setattr(OpenVino, "stand_in", lambda self, precision: None)
    built = build_engine(Store(tmp_path), variant, exported, workload)
    with built.load(workload, threads=1) as engine:
        ran = engine.executed.summary
        flags = execution_flags(built, engine.executed)
    assert ran in ("bf16", "f32")
    assert flags == (f"fp16 requested, {ran} ran: the CPU lacks AVX512-FP16",)


def test_the_stand_in_for_fp16_is_flagged_too(tmp_path, exported, workload):
    if OpenVino().stand_in(Precision.FP16) is None:
        pytest.skip("this CPU computes fp16: there is no stand-in")
    variant = Variant("tiny", "openvino", Precision.FP16)
    built = build_engine(Store(tmp_path), variant, exported, workload)
    assert built.backend == "onnxruntime"
    with built.load(workload, threads=1) as engine:
        (flag,) = execution_flags(built, engine.executed)
    assert "fp16 requested, f32 ran: the CPU lacks AVX512-FP16" in flag


def test_an_honest_engine_is_not_flagged(tmp_path, exported, workload):
    variant = Variant("tiny", "openvino", Precision.FP32)
    built = build_engine(Store(tmp_path), variant, exported, workload)
    with built.load(workload, threads=1) as engine:
        assert execution_flags(built, engine.executed) == ()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_engine_file_of_junk_is_one_clear_error(tmp_path, exported, workload, backend):
    variant = Variant("tiny", backend, Precision.FP32)
    built = build_engine(Store(tmp_path), variant, exported, workload)
    for file in built.entry.folder.glob("engine.*"):
        file.write_bytes(b"junk" * 100)
    with pytest.raises(EngineError, match="cannot"), built.load(workload, threads=1):
        pass


def test_best_is_the_fastest_within_the_limits(tmp_path, exported, workload, monkeypatch):
    store = Store(tmp_path)
    candidates = {
        p: build_engine(store, Variant("tiny", "onnxruntime", p), exported, workload)
        for p in get_backend("onnxruntime").offers
    }
    speeds = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr(building, "median_call_s", lambda *arguments: next(speeds))
    refused = iter([(), (), ("cosine_worst 0.1 < 0.9999",)])
    best, notes = choose_best(store, candidates, workload, 1, lambda embeddings: next(refused), {})
    assert best is Precision.FP16
    assert "best took fp16" in notes[0]
    assert notes[1] == "int8 refused: cosine_worst 0.1 < 0.9999"
    again, _ = choose_best(store, candidates, workload, 1, lambda embeddings: (), {})
    assert again is best
    speeds = iter([3.0, 2.0, 1.0])
    other, _ = choose_best(store, candidates, workload, 1, lambda embeddings: (), {"cosine": 0.5})
    assert other is Precision.INT8


def test_no_engine_within_the_limits_is_an_error(tmp_path, exported, workload):
    store = Store(tmp_path)
    variant = Variant("tiny", "onnxruntime", Precision.FP32)
    candidates: dict[Precision, Built] = {
        Precision.FP32: build_engine(store, variant, exported, workload)
    }
    with pytest.raises(EngineError, match="so there is none"):
        choose_best(store, candidates, workload, 1, lambda embeddings: ("too far off",), {})


def test_a_blob_is_written_without_a_copy_of_it_in_memory(tmp_path, exported, workload):
    given = (exported, Precision.FP32, workload.calibration, tmp_path)
    OpenVino().build(*given)  # once, so that all is imported
    tracemalloc.start()  # sees what Python holds
    try:
        OpenVino().build(*given)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < (tmp_path / "engine.blob").stat().st_size


def test_a_full_disk_is_told_though_openvino_goes_on(tmp_path, exported, workload):
    (tmp_path / "engine.blob").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        OpenVino().build(exported, Precision.FP32, workload.calibration, tmp_path)
