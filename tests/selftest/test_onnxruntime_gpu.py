"""ONNX Runtime's GPU providers: nothing runs on the processor without a word. A fake runtime."""

import dataclasses
import json
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as real
import pytest
from onnx import numpy_helper

from enginegate.cache import Store
from enginegate.engines import BuildHints
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine, execution_flags
from enginegate.engines.registry import get_backend
from enginegate.errors import EngineError
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.variants import Precision, Variant

ROLES = {"input_ids": "ids", "attention_mask": "mask"}
CUDA, TENSORRT, CPU = (f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "CPU"))


@dataclasses.dataclass
class Gpu:
    """What the fake runtime does; `session` is the latest one."""

    loads: tuple[str, ...] = (CUDA, TENSORRT)
    on_cpu: tuple[str, ...] = ()
    session: "Session | None" = None


class Session:
    """ONNX Runtime on the processor that says it runs where it was asked to."""

    def __init__(self, gpu, path, options, providers):
        self.gpu, self.asked = gpu, dict(providers)
        plan = cached_plan(path, self.asked.get(TENSORRT, {}))
        self._real = real.InferenceSession(str(plan), options, providers=[CPU])
        self._providers = [name for name in self.asked if name in gpu.loads]
        self.retries = True
        gpu.session = self

    def get_providers(self):
        return [*self._providers, CPU]

    def disable_fallback(self):
        self.retries = False

    def run(self, names, feeds):
        return self._real.run(names, feeds)

    def end_profiling(self):
        path = self._real.end_profiling()
        events = json.loads(open(path).read())  # noqa: PTH123, SIM115
        for event in events:
            if event["name"].endswith("_kernel_time"):
                kind = event["args"]["op_name"]
                event["args"]["provider"] = CPU if kind in self.gpu.on_cpu else self._providers[0]
        with open(path, "w") as stream:  # noqa: PTH123
            json.dump(events, stream)
        return path


def cached_plan(path, options):
    """The file that the TensorRT provider runs: a plan of the same name, if its cache has one.

    As in ONNX Runtime, the name is a hash of names: of the file, of inputs and of the results of
    nodes. Weights and scales do not count, and folders are only made in folders that exist.
    """
    if options.get("trt_engine_cache_enable") != "1":
        return Path(path)
    folder = Path(options["trt_engine_cache_path"])
    folder.mkdir(exist_ok=True)
    graph = onnx.load(path).graph
    results = [name for node in graph.node for name in node.output]
    names = [Path(path).name, *(value.name for value in graph.input), *results]
    kinds = "".join(options[f"trt_{kind}_enable"] for kind in ("fp16", "int8"))
    plan = folder / f"TRTKernel_{zlib.crc32(repr(names).encode())}_{kinds}_sm90.engine"
    if not plan.exists():
        shutil.copy(path, plan)
    return plan


@pytest.fixture
def gpu(fake_gpu, monkeypatch):
    """A fake onnxruntime-gpu."""
    found = Gpu()
    fake = SimpleNamespace(
        **{name: getattr(real, name) for name in ("SessionOptions", "__version__", "__file__")},
        InferenceSession=lambda path, options, providers, **_: (
            real.InferenceSession(path, options, providers=[CPU])
            if list(providers) == [CPU]  # numbers for a calibration
            else Session(found, path, options, providers)
        ),
        preload_dlls=lambda: None,
    )
    import enginegate.engines.onnxruntime
    import enginegate.engines.onnxruntime_gpu

    monkeypatch.setattr(
        enginegate.engines.registry, "installed_version", lambda name: real.__version__
    )
    monkeypatch.setattr(enginegate.engines.onnxruntime, "ort", fake)
    monkeypatch.setattr(enginegate.engines.onnxruntime_gpu, "ort", fake)
    return found


@pytest.fixture
def workload():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)


@pytest.fixture
def exported(tiny_onnx):
    spec = ModelSpec("tiny", Kind.ONNX, str(tiny_onnx), vocab_size=200, seq_len=8)
    return Exported(spec, tiny_onnx, "hash", "here", None, ROLES, "sentence_embedding")


@pytest.fixture
def build(tmp_path, gpu, exported, workload):
    def make(backend, precision=Precision.FP32, model=exported, **demanded):
        variant = Variant("tiny", backend, precision)
        return build_engine(Store(tmp_path), variant, model, workload, BuildHints(**demanded))

    return make


def test_the_cuda_provider_runs_without_tf32_and_without_retries(build, gpu, workload):
    built = build("onnxruntime-cuda")
    with built.load(workload, threads=1) as engine:
        assert embed_all(engine, workload.evaluation).dtype == np.float32
        assert execution_flags(built, engine.executed) == ()
    assert gpu.session.asked == {CUDA: {"device_id": "0", "use_tf32": "0"}}
    assert not gpu.session.retries


def test_tf32_is_flagged_where_it_is_allowed(build, workload):
    built = build("onnxruntime-cuda", tf32=True)
    with built.load(workload, threads=1) as engine:
        (flag,) = execution_flags(built, engine.executed)
    assert flag.startswith("fp32 requested, tf32 ran: ")


def load_error(built, workload):
    with pytest.raises(EngineError) as caught, built.load(workload, threads=1):
        pass
    return str(caught.value)


def test_a_provider_that_does_not_load_is_never_replaced(build, gpu, workload):
    gpu.loads = ()
    said = load_error(build("onnxruntime-cuda"), workload)
    assert said.startswith(f"ONNX Runtime took {CPU} in place of {CUDA}: ")


def test_nodes_with_floats_on_the_processor_are_an_error(build, gpu, workload):
    gpu.on_cpu = ("MatMul",)
    said = load_error(build("onnxruntime-cuda"), workload)
    assert "put 1 nodes on the processor" in said
    assert "use --gate-backend tensorrt" in said


def test_index_arithmetic_may_run_on_the_processor(build, gpu, workload):
    gpu.on_cpu = ("Shape", "Unsqueeze_of_ids")
    with build("onnxruntime-cuda").load(workload, threads=1) as engine:
        assert engine.executed.matmuls == {"f32": 1}


def test_without_a_gpu_it_is_never_loaded(build, fake_gpu, workload):
    from enginegate.machine.gpus import find_gpus

    built = build("onnxruntime-cuda")
    fake_gpu.gpus = 0
    find_gpus.cache_clear()
    with pytest.raises(Exception, match="no GPU is visible"), built.load(workload, threads=1):
        pass


def test_the_tensorrt_provider_proves_nothing_and_says_so(build, tensorrt_provider, workload):
    built = build("onnxruntime-tensorrt", Precision.FP16, usual_batch=4, largest_batch=16)
    with built.load(workload, threads=1) as engine:
        (flag,) = execution_flags(built, engine.executed)
    assert flag.startswith("fp16 requested, unseen ran: ONNX Runtime does not tell")
    asked = tensorrt_provider.session.asked
    assert list(asked) == [TENSORRT, CUDA]
    assert asked[TENSORRT]["trt_profile_max_shapes"] == "input_ids:16x8,attention_mask:16x8"
    assert asked[TENSORRT]["trt_fp16_enable"] == "1"


def test_the_tensorrt_provider_may_take_tf32_for_fp32_and_that_is_said(
    build, tensorrt_provider, workload
):
    built = build("onnxruntime-tensorrt")
    with built.load(workload, threads=1) as engine:
        (flag,) = execution_flags(built, engine.executed)
    assert "inside TensorRT, which may take TF32 for fp32; --gate-backend tensorrt" in flag


TRITON = {  # parameters that Triton's ONNX Runtime takes; for an unknown one the model fails
    "tensorrt": {
        *("precision_mode", "trt_engine_cache_enable", "trt_engine_cache_path"),
        *(f"trt_profile_{name}_shapes" for name in ("min", "opt", "max")),
    },
    "cuda": {"use_tf32"},  # handed to the provider
}


@pytest.mark.parametrize(
    ("precision", "mode"),
    [(Precision.FP32, None), (Precision.FP16, "FP16"), (Precision.INT8, "INT8")],
)
def test_triton_is_told_shapes_precision_and_a_cache_of_the_engines_own(
    build, exported, tensorrt_provider, tmp_path, precision, mode
):
    again = trained_again(exported, tmp_path / "again.onnx")
    paths = set()
    for model in (exported, again):
        built = build("onnxruntime-tensorrt", precision, model, largest_batch=16)
        told = dict(built.entry.properties["accelerators"])
        assert list(told) == ["tensorrt", "cuda"]
        assert all(set(parameters) <= TRITON[name] for name, parameters in told.items())
        assert told["tensorrt"].get("precision_mode") == mode
        assert told["tensorrt"]["trt_profile_max_shapes"] == "input_ids:16x8,attention_mask:16x8"
        assert told["cuda"] == {"use_tf32": "0"}
        paths.add(told["tensorrt"]["trt_engine_cache_path"])
    assert len(paths) == 2


def trained_again(model, path):
    """The model with other weights under the same names."""
    content = onnx.load(str(model.onnx))
    for tensor in content.graph.initializer:
        if tensor.name == "head":
            values = -numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(content, path)
    return dataclasses.replace(model, onnx=path, sha256="another")


@pytest.fixture
def tensorrt_provider(gpu, monkeypatch):
    monkeypatch.setattr("enginegate.engines.onnxruntime_gpu.check_tensorrt", lambda folder: None)
    return gpu


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_a_model_that_was_trained_again_never_runs_the_plan_of_the_one_before(
    build, exported, tensorrt_provider, workload, tmp_path, precision
):
    again = trained_again(exported, tmp_path / "again.onnx")
    found = []
    for model in (exported, again, exported):
        built = build("onnxruntime-tensorrt", precision, model)
        with built.load(workload, threads=1) as engine:
            found.append(embed_all(engine, workload.evaluation))
    assert np.abs(found[0] + found[1]).max() < 0.1 * np.abs(found[0]).max()
    assert np.array_equal(found[0], found[2])


def test_a_plan_is_kept_for_the_next_load(build, tensorrt_provider, workload, tmp_path):
    built = build("onnxruntime-tensorrt")
    for _ in range(2):
        with built.load(workload, threads=1) as engine:
            engine.embed(workload.batch(2))
    options = tensorrt_provider.session.asked[TENSORRT]
    assert len(list(Path(options["trt_engine_cache_path"]).iterdir())) == 1
    assert Path(options["trt_timing_cache_path"]).is_dir()
    assert build("onnxruntime-tensorrt").entry.note == ""  # the entry is as it was built


def test_half_a_plan_is_never_found_by_the_next_load(build, tensorrt_provider, workload):
    built = build("onnxruntime-tensorrt")
    beside = built.entry.folder.parent.iterdir
    tensorrt_provider.loads = (CUDA,)  # after the plan's file was begun
    assert load_error(built, workload).startswith("ONNX Runtime took ")
    assert [path.name for path in beside() if path.name.startswith(".")] == [".tensorrt-timings"]
    tensorrt_provider.loads = (CUDA, TENSORRT)
    with built.load(workload, threads=1), built.load(workload, threads=1):  # a second control's
        kept = [path for path in beside() if path.name.startswith(".tensorrt-")]
        assert len(kept) == 2
        assert str(kept[0]) in tensorrt_provider.session.asked[TENSORRT].values()


def test_a_folder_that_cannot_be_written_has_no_cache(build, tensorrt_provider, workload):
    built = build("onnxruntime-tensorrt")
    built.entry.folder.parent.joinpath(".tensorrt-timings").write_text("in the way")
    with built.load(workload, threads=1):
        pass
    assert "trt_engine_cache_path" not in tensorrt_provider.session.asked[TENSORRT]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no TensorRT provider: pip install onnxruntime-gpu"),
        (b"..libnvinfer.so.10..", r"needs TensorRT 10, .*pip install 'tensorrt>=10,<11'"),
    ],
)
def test_the_version_of_tensorrt_is_checked_before_it_is_loaded(tmp_path, gpu, content, said):
    from enginegate.engines.onnxruntime_gpu import check_tensorrt

    if content:
        (tmp_path / "libonnxruntime_providers_tensorrt.so").write_bytes(content)
    with pytest.raises(EngineError, match=said):
        check_tensorrt(tmp_path)


def test_versions_name_the_provider_and_the_gpu(gpu):
    said = get_backend("onnxruntime-cuda").version()
    assert said.endswith("CUDAExecutionProvider on NVIDIA Fake 9000, CUDA 13.0")
