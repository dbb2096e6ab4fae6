"""TensorRT on the fake GPU: the whole way from ONNX to judged embeddings."""

import json

import numpy as np
import pytest

from enginegate.build import build_engine, execution_flags
from enginegate.engines import Demand, embed_all
from enginegate.engines.onnxruntime import open_onnx
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.store import Store
from enginegate.variants import Precision, Variant
from enginegate.workload import default_corpus, hashed_tokenizer, make_workload

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
    return embed_all(engine, workload.evaluation)


@pytest.fixture
def build(tmp_path, fake_gpu, exported, workload):
    def make(precision, **demand):
        variant = Variant("tiny", "tensorrt", precision)
        return build_engine(Store(tmp_path), variant, exported, workload, Demand(**demand))

    return make


BUILT = [
    (Precision.FP32, "f32", 1e-6),
    (Precision.FP16, "f16", 5e-3),
    (Precision.BF16, "bf16", 5e-2),
    (Precision.INT8, "i8", 0.5),
]


@pytest.mark.parametrize(("precision", "ran", "tolerance"), BUILT)
def test_every_precision_runs_and_is_proven(build, workload, reference, precision, ran, tolerance):
    built = build(precision)
    with built.load(workload, threads=1) as engine:
        found = embed_all(engine, workload.evaluation)
        assert engine.executed.matmuls == {ran: 1}
        assert execution_flags(built, engine.executed) == ()
    assert np.abs(found - reference).max() < tolerance
    assert (np.abs(found - reference).max() > 0) == (precision is not Precision.FP32)


@pytest.fixture
def gpu_project(project, fake_gpu):
    """The project of one tiny model, on the fake GPU; nothing but TensorRT is loaded into it."""
    project.write("conftest.py", "")
    table = (project.path / "pyproject.toml").read_text()
    project.write("pyproject.toml", table.replace('backend = "faulty"', 'backend = "tensorrt"'))
    return project


def test_a_whole_run_on_tensorrt(gpu_project):
    result = gpu_project.run(
        "--backend=tensorrt", "--precision=all", "--refresh-baselines", "--report-json=report.json"
    )
    result.assert_outcomes(passed=14)
    result.stdout.fnmatch_lines(["*wrote*"])
    report = json.loads((gpu_project.path / "report.json").read_text())
    ran = {r["variant"]["precision"]: r["executed"] for r in report["results"]}
    assert ran["fp16"] == {"f16": 1}
