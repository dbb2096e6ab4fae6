"""TensorRT on the fake GPU: the whole way from ONNX to judged embeddings."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from enginegate.cache import Store
from enginegate.engines import BuildHints, registry
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine, execution_flags
from enginegate.engines.onnxruntime import open_onnx
from enginegate.engines.registry import offered
from enginegate.errors import EngineError, OptionError
from enginegate.machine.fingerprint import this_machine
from enginegate.machine.gpus import find_gpus
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.tokens import in_buckets
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.session.comparison import built_otherwise
from enginegate.variants import Precision, Variant

REPORT_SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
RAN = {"fp32": ["f32"], "fp16": ["f16"], "bf16": ["bf16"], "int8": ["i8"]}
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
        return build_engine(Store(tmp_path), variant, exported, workload, BuildHints(**demand))

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


@pytest.mark.parametrize("precision", [precision for precision, _, _ in BUILT])
def test_weights_that_no_message_holds_reach_the_parser(
    build, workload, monkeypatch, precision, fake_gpu
):
    monkeypatch.setattr("enginegate.models.onnx_file.LIMIT_BYTES", 100)
    fake_gpu.largest_message = 10_000
    with build(precision).load(workload, threads=1) as engine:
        assert engine.executed.matmuls == {RAN[precision][0]: 1}


def test_a_whole_run_on_tensorrt(gpu_project):
    options = ("--gate-backend=tensorrt", "--precision=all", "--gate-report-json=report.json")
    one = "--gate-sessions=1"  # no other process has the fake
    first = gpu_project.run(*options, "--gate-refresh-baselines", one)
    assert first.ret == 0
    first.stdout.fnmatch_lines(["baselines: wrote baselines/*nvidia-fake-9000*/tiny.json"])
    report = json.loads((gpu_project.path / "report.json").read_text())
    jsonschema.validate(report, json.loads(REPORT_SCHEMA.read_text()))
    found = {r["variant"]["precision"]: r for r in report["results"]}
    assert {p: list(found[p]["executed"]) for p in RAN} == RAN
    assert found["best"]["chosen"] in RAN  # the fastest here, on a processor
    assert all(r["speeds"][1]["batch"] == 4 and not r["flags"] for r in found.values())
    assert all(r["accuracy"]["deltas"]["max_abs"] < 0.5 for r in found.values())
    assert found["fp16"]["backend"] == ("tensorrt 11.4.0.106 on NVIDIA Fake 9000, driver CUDA 13.0")


def test_the_parser_gets_one_output_of_several(gpu_project, fake_gpu):
    """Every other one would be computed and copied at each call, and end a fusion."""
    path = gpu_project.path / "tiny.onnx"
    model = onnx.load(path)
    vectors = onnx.helper.make_tensor_value_info("vectors", 1, ["batch", "seq", 32])
    model.graph.output.append(vectors)
    onnx.save(model, path)
    table = (gpu_project.path / "pyproject.toml").read_text()
    named = table.replace("tiny.onnx", 'tiny.onnx"\noutput = "sentence_embedding')
    gpu_project.write("pyproject.toml", named)
    assert gpu_project.run("--precision=fp16", "-k", "embeddings").ret == 0
    assert fake_gpu.parsed == ["sentence_embedding"]


def test_an_engine_on_the_gpu_is_timed_beside_fp32_there(gpu_project, fake_gpu):
    """Beside the processor, what slows the GPU would be taken for a slower engine."""
    options = ("--precision=fp16", "--gate-report-json=report.json", "--gate-report-text=r.txt")
    result = gpu_project.run(*options, "--gate-refresh-baselines", "--gate-sessions=1")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["fp16: the speedup is over fp32 on the same GPU"])
    (found,) = json.loads((gpu_project.path / "report.json").read_text())["results"]
    assert found["context"]["control"] == "fp32 on the same GPU"
    built = [
        json.loads(p.read_text()) for p in gpu_project.path.glob("cache/engine/*/manifest.json")
    ]
    assert sorted(entry["key"]["precision"] for entry in built) == ["fp16", "fp32"]
    assert " x fp32 on the same GPU, " in (gpu_project.path / "r.txt").read_text()
    stored = json.loads(next(gpu_project.path.glob("baselines/*/tiny.json")).read_text())
    assert "fp32 on the same GPU" in json.dumps(stored)


def test_a_second_run_builds_nothing(gpu_project, fake_gpu):
    for _ in range(2):
        assert gpu_project.run("--precision=fp16", "-k", "embeddings").ret == 0
    assert fake_gpu.log.count("built") == 1


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
@pytest.mark.parametrize(("capability", "offers"), [((7, 5), False), ((8, 0), True)])
def test_bf16_is_offered_where_the_gpu_has_it(fake_gpu, monkeypatch, backend, capability, offers):
    monkeypatch.setattr(registry, "installed_version", lambda name: "1.31.0")
    fake_gpu.capability = capability
    assert (Precision.BF16 in offered(backend, list(Precision))) == offers
    if not offers:
        with pytest.raises(OptionError, match=f"{backend} does not build bf16: it offers fp32,"):
            offered(backend, [Precision.BF16])


def test_without_bf16_a_plan_of_it_cannot_be_built(build, fake_gpu):
    fake_gpu.capability = (7, 5)
    with pytest.raises(EngineError, match="BF16 is not supported on this platform"):
        build(Precision.BF16)


def test_another_length_of_texts_is_another_plan(tmp_path, fake_gpu, exported, workload):
    variant = Variant("tiny", "tensorrt", Precision.FP32)
    spec = dataclasses.replace(exported.spec, seq_len=16)
    longer = dataclasses.replace(exported, spec=spec)
    texts = make_workload("corpus", default_corpus(), hashed_tokenizer(200, 16), ROLES)
    build_engine(Store(tmp_path), variant, exported, workload)
    with build_engine(Store(tmp_path), variant, longer, texts).load(texts, threads=1) as engine:
        assert len(engine.embed(texts.batch(2))) == 2


def test_a_plan_has_a_profile_for_each_bucket(tmp_path, fake_gpu, exported):
    words = hashed_tokenizer(200, 64, fixed=False)
    texts = make_workload(
        "corpus", default_corpus(), lambda some: in_buckets(words(some), "auto", 64), ROLES
    )
    assert list(texts.buckets) == [16, 32, 64]
    variant = Variant("tiny", "tensorrt", Precision.FP32)
    longer = dataclasses.replace(exported, spec=dataclasses.replace(exported.spec, seq_len=64))
    built = build_engine(Store(tmp_path), variant, longer, texts, BuildHints(batches=(1, 4)))
    reference = open_onnx(exported.onnx, exported.output, texts.batch(2), threads=1)
    expected = embed_all(reference, texts.evaluation)
    engine: Any
    with built.load(texts, threads=1) as engine:
        assert engine.runner.usual_shapes == [(32, 16), (32, 32), (32, 64)]
        fake_gpu.profiles.clear()
        assert np.abs(embed_all(engine, texts.evaluation) - expected).max() < 1e-5
        assert set(fake_gpu.profiles) == {0, 1, 2}
    same = build_engine(Store(tmp_path), variant, longer, texts, BuildHints(batches=(1, 4)))
    assert same.entry.folder == built.entry.folder
    assert same.entry.key["demand"]["lengths"] == [16, 32, 64]


def test_a_plan_of_another_driver_is_told_where_it_is_compared(build, fake_gpu):
    then = build(Precision.FP32)
    assert list(built_otherwise(then, build(Precision.FP32))) == []
    fake_gpu.driver = 13010
    find_gpus.cache_clear()
    (line,) = built_otherwise(then, build(Precision.FP32))
    assert re.search(r"otherwise: runtime .*, driver CUDA 13\.0 -> .*, driver CUDA 13\.1$", line)


def test_baselines_of_another_gpu_are_incomparable(gpu_project, fake_gpu):
    gpu_project.run("--precision=fp16", "--gate-refresh-baselines")
    fake_gpu.gpu = "NVIDIA Other"
    find_gpus.cache_clear()
    this_machine.cache_clear()
    result = gpu_project.run("--precision=fp16", "-k", "fp16-1")
    result.stdout.fnmatch_lines(["*incomparable: baselines are of *nvidia-fake-9000*"])


@pytest.mark.parametrize("known", [True, False])
def test_a_baseline_of_another_power_limit_is_incomparable(gpu_project, fake_gpu, known):
    gpu_project.run("--precision=fp16", "--gate-refresh-baselines", "--gate-sessions=1")
    (path,) = gpu_project.path.glob("baselines/*/tiny.json")
    stored = json.loads(path.read_text())
    stored["variants"]["tensorrt-fp16"] |= {"provenance": None}  # nothing to measure beside
    if not known:  # as files of older versions are
        del stored["variants"]["tensorrt-fp16"]["context"]["power_limit"]
    path.write_text(json.dumps(stored))
    fake_gpu.power_limit_mw = 450_000
    result = gpu_project.run("--precision=fp16", "-k", "fp16-1")
    was = "700 W" if known else "not known"
    result.stdout.fnmatch_lines([f"*incomparable: power_limit was {was}, is 450 W*"])


def test_a_part_of_a_gpu_has_a_number_of_its_own(fake_gpu):
    fake_gpu.gpu = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert find_gpus().gpus[0].uuid == "MIG-00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_a_plan_is_written_for_a_triton_with_a_gpu_and_the_command_is_told(gpu_project):
    shutil.copy(Path(__file__).parents[1] / "test_serving.py", gpu_project.path)
    options = (
        "--precision=fp16",
        "--gate-serve=triton",
        "--gate-model-repository=models",
        "-k",
        "served",
    )
    result = gpu_project.run(*options, "--gate-max-batch-size=8")
    result.stdout.fnmatch_lines(
        [
            "*docker run --rm --gpus device=GPU-00010203-0405-0607-0809-0a0b0c0d0e0f *tritonserver "
            "--model-repository=/models, and --gate-serve grpc://localhost:8001/"
            "tiny-tensorrt-fp16; YY.MM is a release whose TensorRT is 11.4.0.106*"
        ]
    )
    folder = gpu_project.path / "models" / "tiny-tensorrt-fp16"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [0])
    (plan,) = gpu_project.path.glob("cache/engine/*/engine.plan")
    assert (folder / "1" / "model.plan").read_bytes() == plan.read_bytes()
