"""ONNX Runtime on an NVIDIA GPU: its CUDA and its TensorRT provider, and nothing in their place.

ONNX Runtime takes another provider where the asked one does not load, and puts single nodes on the
processor where it sees fit, all without an error. So the session's own list of providers is
checked, its retries with other providers are forbidden, and the profile of a first inference must
show every node with floating-point values on the GPU. Index arithmetic may run on the processor:
the runtime puts it there on purpose.
"""

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxruntime as ort

from enginegate.engines.api import ACCELERATORS, ONNX_FILE, PLANS, BuildHints, Executed
from enginegate.engines.int8 import to_int8
from enginegate.engines.onnxruntime import (
    Event,
    OnnxRuntime,
    OnnxRuntimeEngine,
    executed_in,
    profiled,
)
from enginegate.engines.quantize import matmuls_of, products_to_bf16, to_fp16
from enginegate.errors import EngineError
from enginegate.files import scratch_folder, sha256_of_folder, sha256_of_json
from enginegate.machine import first_gpu, precisions_here
from enginegate.models import Batch, Exported
from enginegate.variants import Precision

_CUDA, _TENSORRT, _CPU = (f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "CPU"))
_FLOATS = frozenset({"float", "float16", "bfloat16", "double"})
_NVINFER = re.compile(rb"libnvinfer\.so\.(\d+)")
_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)
_MOST_NAMED = 5
_TIMINGS = f"{PLANS}timings"
UNSEEN = "unseen"  # inside TensorRT's own subgraphs


@dataclass(frozen=True)
class OnnxRuntimeCuda:
    """The CUDA provider. TF32 is off unless it is allowed; the provider has it on by default."""

    demand: BuildHints = field(default_factory=BuildHints)
    offers: tuple[Precision, ...] = field(default_factory=lambda: precisions_here(_PRECISIONS))
    provider: str = _CUDA

    def version(self) -> str:
        """Version of ONNX Runtime, the provider, and the GPU and driver that it runs on."""
        gpu = first_gpu()
        return f"onnxruntime-gpu {ort.__version__} {self.provider} on {gpu.name}, {gpu.driver}"

    def for_demand(self, demand: BuildHints) -> "OnnxRuntimeCuda":
        """A backend that builds for these batch sizes."""
        return replace(self, demand=demand)

    def stand_in(self, precision: Precision) -> str | None:  # noqa: ARG002
        """None: what the provider lacks shows in the proof."""
        return None

    def limitation(self, precision: Precision) -> str:
        """The reason why another type may run."""
        if precision is Precision.FP32:
            return "the CUDA provider multiplies in TF32 only where --gate-tf32 allows it"
        return "the CUDA provider has no such kernel for every operator"

    def build(
        self, model: Exported, precision: Precision, calibration: Batch, folder: Path
    ) -> Mapping[str, Any]:
        """Write `engine.onnx` in the given precision."""
        properties = _converted(model, precision, calibration, folder)
        options = {"use_tf32": str(int(self.demand.tf32))}
        return {
            **properties,
            "providers": [[_CUDA, {"device_id": "0", **options}]],
            "tf32": self.demand.tf32,
            ACCELERATORS: [["cuda", options]],
        }

    @contextlib.contextmanager
    def load(
        self, folder: Path, properties: Mapping[str, Any], probe: Batch, threads: int
    ) -> Iterator[OnnxRuntimeEngine]:
        """Load `engine.onnx` on the GPU, and only there."""
        ort.preload_dlls()  # CUDA and cuDNN from their wheels, where those are installed
        yield open_on_gpu(folder / ONNX_FILE, properties, probe, threads)


@dataclass(frozen=True)
class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """The TensorRT provider, the CUDA provider for what it leaves.

    Types inside its subgraphs are not told, so no engine of it is ever without a flag.
    """

    offers: tuple[Precision, ...] = (Precision.FP32, Precision.FP16, Precision.INT8)
    provider: str = _TENSORRT

    def version(self) -> str:
        """The same. Raises EngineError where the provider's TensorRT cannot be loaded."""
        check_tensorrt(Path(ort.__file__).parent / "capi")
        return super().version()

    def limitation(self, precision: Precision) -> str:
        """The reason why nothing is proven."""
        tf32 = ", which may take TF32 for fp32" if precision is Precision.FP32 else ""
        return (
            f"ONNX Runtime does not tell which types run inside TensorRT{tf32}; "
            "--gate-backend tensorrt proves them"
        )

    def build(
        self, model: Exported, precision: Precision, calibration: Batch, folder: Path
    ) -> Mapping[str, Any]:
        """Write `engine.onnx`; the provider builds its plans when it is first loaded."""
        properties = super().build(model, precision, calibration, folder)
        shapes, content = _shapes(model, self.demand), sha256_of_json(sha256_of_folder(folder))
        options = {**shapes, **_flags(precision)}
        served = {**shapes, **_flags_of_triton(precision, content)}
        return {
            **properties,
            "providers": [[_TENSORRT, options], *properties["providers"]],
            "content": content,
            ACCELERATORS: [["tensorrt", served], *properties[ACCELERATORS]],
        }

    @contextlib.contextmanager
    def load(
        self, folder: Path, properties: Mapping[str, Any], probe: Batch, threads: int
    ) -> Iterator[OnnxRuntimeEngine]:
        """Load `engine.onnx` on the GPU, and only there."""
        (name, options), *others = properties["providers"]
        identity = sha256_of_json([self.version(), dict(properties)])
        with contextlib.ExitStack() as loaded:
            with _plans_of(folder.parent, identity) as caches:
                cached = {**properties, "providers": [(name, {**options, **caches}), *others]}
                engine = loaded.enter_context(super().load(folder, cached, probe, threads))
            yield engine


def _converted(
    model: Exported, precision: Precision, calibration: Batch, folder: Path
) -> Mapping[str, Any]:
    target = folder / ONNX_FILE
    if model.nature.is_quantised or precision is Precision.FP32:
        return OnnxRuntime().build(model, precision, calibration, folder)
    if precision is Precision.INT8:
        inside = to_int8(model.onnx, target, calibration)
    else:
        inside = (to_fp16 if precision is Precision.FP16 else products_to_bf16)(model.onnx, target)
    return {"output": model.output, "apart": matmuls_of(target) - len(inside)}


def _shapes(model: Exported, demand: BuildHints) -> dict[str, str]:
    """The optimisation profile, `input_ids:1x1,attention_mask:1x1` for the smallest shapes."""
    length = max(demand.lengths, default=model.seq_len)
    shapes = {
        "min": (1, 1),
        "opt": (demand.usual_batch, length),
        "max": (demand.largest_batch, length),
    }
    return {
        f"trt_profile_{name}_shapes": ",".join(f"{i}:{rows}x{columns}" for i in model.inputs)
        for name, (rows, columns) in shapes.items()
    }


def _flags(precision: Precision) -> dict[str, str]:
    return {
        "device_id": "0",
        "trt_fp16_enable": str(int(precision in (Precision.FP16, Precision.INT8))),
        "trt_int8_enable": str(int(precision is Precision.INT8)),
    }


def _flags_of_triton(precision: Precision, content: str) -> dict[str, str]:
    """The same for Triton, which has its own word; its plans in a folder for this very file."""
    modes = {Precision.FP16: "FP16", Precision.INT8: "INT8"}
    mode = {"precision_mode": modes[precision]} if precision in modes else {}
    folder = f"/tmp/enginegate-{content[:32]}"  # noqa: S108 - in the server's container
    return {**mode, "trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}


@contextlib.contextmanager
def _plans_of(root: Path, identity: str) -> Iterator[dict[str, str]]:
    """Options for folders under `root`, of plans and kernel timings; none where they cannot be.

    The provider names a plan by the graph's file and names, without its weights: a model that was
    trained or calibrated again would run the plan of the one before. So each `identity` of an
    engine has a folder of its own. It appears when the engine is loaded, for a provider that is
    killed leaves half a plan. Timings fit every model.
    """
    plans = root / f"{PLANS}{identity[:32]}"
    with contextlib.ExitStack() as made:
        folder = _folder_for(plans, made)
        yield _caches(folder, root / _TIMINGS) if folder else {}
        if folder not in (None, plans):
            with contextlib.suppress(OSError):  # another run was first
                folder.rename(plans)


def _folder_for(plans: Path, made: contextlib.ExitStack) -> Path | None:
    """The folder of plans, a new one beside it, or None where there can be none."""
    with contextlib.suppress(OSError):
        plans.with_name(_TIMINGS).mkdir(exist_ok=True)
        return plans if plans.is_dir() else made.enter_context(scratch_folder(PLANS, plans.parent))
    return None


def _caches(plans: Path, timings: Path) -> dict[str, str]:
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(plans),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timings),
    }


def open_on_gpu(
    path: Path, properties: Mapping[str, Any], probe: Batch, threads: int
) -> OnnxRuntimeEngine:
    """The file as an engine of the given providers; EngineError for anything in their place."""
    first_gpu()
    providers = [(name, options) for name, options in properties["providers"]]
    output = properties["output"]
    with profiled(path, threads, providers) as (session, events):
        _refuse_other_providers(session.get_providers(), [name for name, _ in providers])
        session.disable_fallback()
        session.run([output], dict(probe))
    _refuse_work_on_the_processor(events)
    return OnnxRuntimeEngine(session, output, _proven(events, tf32=properties["tf32"]))


def _refuse_other_providers(found: Sequence[str], wanted: Sequence[str]) -> None:
    if list(found[: len(wanted)]) != list(wanted):
        raise EngineError(
            f"ONNX Runtime took {', '.join(found)} in place of {', '.join(wanted)}: a library of "
            "the provider does not load; `enginegate doctor` says which"
        )


def _refuse_work_on_the_processor(events: Sequence[Event]) -> None:
    names = [event["name"] for event in events if _computes_on_the_processor(event["args"])]
    if names:
        shown = ", ".join(names[:_MOST_NAMED])
        raise EngineError(
            f"ONNX Runtime put {len(names)} nodes on the processor, {shown} among them: the "
            "provider has no kernel for them; export with another opset, or use "
            "--gate-backend tensorrt"
        )


def _computes_on_the_processor(kernel: Mapping[str, Any]) -> bool:
    values = [*kernel["input_type_shape"], *kernel["output_type_shape"]]
    types = {name for value in values for name in value}
    return kernel["provider"] == _CPU and bool(types & _FLOATS)


def _proven(events: Sequence[Event], *, tf32: bool) -> Executed:
    """By type; what TensorRT took as a whole is `unseen`, and f32 may be TF32 where allowed."""
    matmuls = dict(executed_in([e for e in events if e["args"]["provider"] != _TENSORRT]).matmuls)
    if tf32 and "f32" in matmuls:
        matmuls["tf32"] = matmuls.pop("f32")
    if hidden := sum(event["args"]["provider"] == _TENSORRT for event in events):
        matmuls[UNSEEN] = hidden
    return Executed(matmuls)


@functools.cache
def check_tensorrt(folder: Path) -> None:
    """Raise EngineError unless the TensorRT that the provider was linked to can be loaded.

    `folder` holds `libonnxruntime_providers_tensorrt.so`, which names the major version it needs.
    """
    provider = folder / "libonnxruntime_providers_tensorrt.so"
    needed = _NVINFER.search(provider.read_bytes()) if provider.exists() else None
    if needed is None:
        raise EngineError(
            "this onnxruntime has no TensorRT provider: pip install onnxruntime-gpu in an "
            "environment without onnxruntime"
        )
    major = needed[1].decode()
    with contextlib.suppress(ImportError):
        import tensorrt  # noqa: F401 - loads its libraries, which a wheel keeps out of the path
    try:
        ctypes.CDLL(f"libnvinfer.so.{major}")
    except OSError as error:
        raise EngineError(
            f"ONNX Runtime's TensorRT provider needs TensorRT {major}, which does not load "
            f"({error}): pip install 'tensorrt>={major},<{int(major) + 1}'"
        ) from error
