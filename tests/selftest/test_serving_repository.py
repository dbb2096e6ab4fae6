"""The model repository: what is written is what a deployment would have."""

import dataclasses
import json

import numpy as np
import pytest

from enginegate.cache import MANIFEST, Entry
from enginegate.config.serving import Deployment
from enginegate.engines import PLAN_FILE, TritonModel, register, run_reference
from enginegate.engines.build import Built
from enginegate.engines.registry import REGISTERED, get_backend
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.serving.triton.repository import served_as, write_engine, write_reference
from enginegate.variants import Precision, Variant

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"


@pytest.fixture
def tiny(tiny_onnx):
    """The tiny model, exported."""
    spec = ModelSpec("tiny", Kind.ONNX, str(tiny_onnx), seq_len=8, vocab_size=200)
    roles = dict(zip(INPUTS, ("ids", "mask"), strict=True))
    return Exported(spec, tiny_onnx, "0", "seeded", None, roles, OUTPUT)


@pytest.fixture
def batch():
    ids = np.random.default_rng(0).integers(1, 200, (64, 8))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture
def built(tiny, batch, tmp_path):
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / MANIFEST).touch()
    properties = get_backend("onnxruntime").build(tiny, Precision.FP32, batch, folder)
    variant = Variant("tiny", "onnxruntime", Precision.FP32)
    return Built(variant, Precision.FP32, "onnxruntime", Entry(folder, properties))


@pytest.fixture
def served(tiny, batch):
    return served_as("tiny", tiny, batch, 16, Deployment())


def of_backend(name, built):
    """The same files, as if another backend had built them."""
    return dataclasses.replace(built, backend=name)


def config_of(root, name="tiny"):
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse((root / name / "config.pbtxt").read_text(), ModelConfig())


class TestRepository:
    def test_engine_on_the_python_backend(self, tmp_path, served, built, batch):
        write_engine(tmp_path, served, built, batch)
        config = config_of(tmp_path)
        assert (config.backend, config.max_batch_size) == ("python", 32)
        assert [(i.name, list(i.dims)) for i in config.input] == [(n, [8]) for n in INPUTS]
        assert [(o.name, list(o.dims)) for o in config.output] == [(OUTPUT, [16])]
        assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
        files = {
            p.relative_to(tmp_path / "tiny" / "1").as_posix() for p in tmp_path.rglob("1/**/*")
        }
        assert files == {"model.py", "engine.json", "probe.npz", "engine", "engine/engine.onnx"}

    def test_an_input_that_takes_int32_is_served_so(self, tmp_path, tiny, built, batch):
        from tritonclient.grpc.model_config_pb2 import TYPE_INT32, TYPE_INT64

        narrow = dataclasses.replace(tiny, int32=frozenset(INPUTS[:1]))
        write_engine(tmp_path, served_as("tiny", narrow, batch, 16, Deployment()), built, batch)
        types = {i.name: i.data_type for i in config_of(tmp_path).input}
        assert types == {INPUTS[0]: TYPE_INT32, INPUTS[1]: TYPE_INT64}

    def test_deployment_is_written(self, tmp_path, served, built, batch):
        deployment = Deployment(16, (4, 8), max_queue_delay_us=10_000, instances=2, threads=3)
        write_engine(tmp_path, dataclasses.replace(served, deployment=deployment), built, batch)
        config = config_of(tmp_path)
        assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
        assert config.dynamic_batching.max_queue_delay_microseconds == 10_000
        assert (config.max_batch_size, config.instance_group[0].count) == (16, 2)
        assert config.parameters["threads"].string_value == "3"

    def test_batching_is_dynamic_without_preferred_sizes(self, tmp_path, served, built, batch):
        write_engine(tmp_path, served, built, batch)
        config = config_of(tmp_path)
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.preferred_batch_size

    def test_reference_is_the_onnx_in_fp32(self, tmp_path, served, tiny, batch):
        write_reference(tmp_path, served, tiny, batch)
        what = json.loads((tmp_path / "tiny" / "1" / "engine.json").read_text())
        assert what["target"] == "enginegate.engines.onnxruntime:OnnxRuntime"
        assert what["properties"] == {"output": OUTPUT, "rounded": False}
        assert (tmp_path / "tiny" / "1" / "engine" / "engine.onnx").stat().st_size > 0

    def test_weights_beside_a_large_engine_go_with_it(self, tmp_path, tiny, batch, monkeypatch):
        monkeypatch.setattr("enginegate.models.onnx_file.LIMIT_BYTES", 10)
        folder, root = tmp_path / "built", tmp_path / "repository"
        folder.mkdir()
        properties = get_backend("onnxruntime").build(tiny, Precision.FP32, batch, folder)
        variant = Variant("tiny", "onnxruntime-cuda", Precision.FP32)
        large = Built(variant, Precision.FP32, "onnxruntime-cuda", Entry(folder, properties))
        served = served_as("tiny", tiny, batch, 16, Deployment())
        write_engine(root, served, large, batch)
        version = root / "tiny" / "1"
        assert {p.name for p in version.iterdir()} == {"model.onnx", "engine.onnx.data"}
        found = run_reference(version / "model.onnx", batch)
        assert np.array_equal(found, run_reference(tiny.onnx, batch))
        write_reference(root, served, tiny, batch)
        engine = root / "tiny" / "1" / "engine"
        assert np.array_equal(run_reference(engine / "engine.onnx", batch), found)

    def test_tensorrt_plan(self, tmp_path, served, built, batch):
        (built.entry.folder / PLAN_FILE).write_bytes(b"plan")
        entry = dataclasses.replace(built.entry, properties={"profiles": 3})
        plan = of_backend("tensorrt", dataclasses.replace(built, entry=entry))
        write_engine(tmp_path, served, plan, batch)
        config = config_of(tmp_path)
        assert (config.platform, config.backend) == ("tensorrt_plan", "")
        assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
        assert config.optimization.cuda.graphs
        assert list(config.instance_group[0].profile) == ["0", "1", "2"]
        assert (tmp_path / "tiny" / "1" / "model.plan").read_bytes() == b"plan"

    def test_a_gpu_is_warm_before_the_first_request(self, tmp_path, served, built, batch):
        """With zeros: random whole numbers would be no words."""
        write_engine(tmp_path, served, of_backend("onnxruntime-cuda", built), batch)
        found = config_of(tmp_path)
        sizes = [warm_up.batch_size for warm_up in found.model_warmup]
        assert sizes == [1, served.deployment.max_batch_size]
        for warm_up in found.model_warmup:
            assert set(warm_up.inputs) == {value.name for value in found.input}
            for value in found.input:
                given = warm_up.inputs[value.name]
                assert (given.data_type, list(given.dims)) == (value.data_type, list(value.dims))
                assert given.zero_data

    def test_an_accelerator_gets_what_the_engine_was_built_for(
        self, tmp_path, served, built, batch
    ):
        asked = [["tensorrt", {"precision_mode": "FP16"}], ["cuda", {"use_tf32": "0"}]]
        entry = dataclasses.replace(built.entry, properties={"accelerators": asked})
        made = dataclasses.replace(built, entry=entry)
        write_engine(tmp_path, served, of_backend("onnxruntime-tensorrt", made), batch)
        config = config_of(tmp_path)
        found = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert [[a.name, dict(a.parameters)] for a in found] == asked

    def test_onnx_for_a_gpu(self, tmp_path, served, built, batch):
        for backend, accelerators in (
            ("onnxruntime-cuda", []),
            ("onnxruntime-tensorrt", ["tensorrt"]),
        ):
            write_engine(tmp_path, served, of_backend(backend, built), batch)
            config = config_of(tmp_path)
            assert (config.backend, config.platform) == ("onnxruntime", "")
            assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
            assert (tmp_path / "tiny" / "1" / "model.onnx").stat().st_size > 0
            found = config.optimization.execution_accelerators.gpu_execution_accelerator
            assert [accelerator.name for accelerator in found] == accelerators

    def test_a_registered_backend_says_which_file_triton_gets(
        self, tmp_path, served, built, batch, monkeypatch
    ):
        monkeypatch.setattr("enginegate.engines.registry.REGISTERED", dict(REGISTERED))
        graph = TritonModel("engine.onnx", "model.xml", backend="openvino")
        register("own", "own:Own", triton=graph)
        write_engine(tmp_path, served, of_backend("own", built), batch)
        config = config_of(tmp_path)
        assert (config.backend, config.platform) == ("openvino", "")
        assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
        assert [p.name for p in (tmp_path / "tiny" / "1").iterdir()] == ["model.xml"]

    def test_written_again_replaces_what_was_there(self, tmp_path, served, built, batch):
        write_engine(tmp_path, served, of_backend("onnxruntime-cuda", built), batch)
        write_engine(tmp_path, served, built, batch)
        assert not (tmp_path / "tiny" / "1" / "model.onnx").exists()
