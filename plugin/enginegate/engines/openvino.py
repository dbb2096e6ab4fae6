"""OpenVINO on the CPU: fp32, bf16, int8 (NNCF), and fp16 where the processor computes it."""

import collections
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

import numpy as np
import openvino as ov

from enginegate.engines.api import Embeddings, Executed, Keeping, check_shape
from enginegate.engines.profile import Kernel, Profile, profile_of
from enginegate.engines.quantizers import quantize, quantized_nodes, without_quantizers
from enginegate.errors import EngineError
from enginegate.models import Batch, Exported
from enginegate.variants import Precision

Made = TypeVar("Made")
_FILE = "engine.blob"
_DEVICE = "CPU"
_HINTS = MappingProxyType(
    {
        Precision.FP32: "f32",
        Precision.FP16: "f16",
        Precision.BF16: "bf16",
        Precision.INT8: "f32",  # of what is not quantised
    }
)
_CAPABILITIES = MappingProxyType({Precision.FP16: "FP16", Precision.BF16: "BF16"})
_MATMULS = ("MatMul", "FullyConnected", "Convolution")
_TYPES_OF_MASKS = ("u8", "boolean")
_FLOATS = ("f32", "f16", "bf16")
_RUNS, _UNTIMED = 10, 3


class OpenVinoEngine:
    """A compiled model with one inference request, proven by its runtime graph."""

    def __init__(self, compiled: Any, output: str, probe: Batch) -> None:
        self._request = compiled.create_infer_request()
        self._output = compiled.output(output)
        self.embed(probe)  # a dynamic graph knows its types only after an inference
        self.executed = _read_graph(compiled.get_runtime_model())

    def embed(self, batch: Batch) -> Embeddings:
        """Embeddings float32 [batch, dim]."""
        results = self._request.infer(dict(batch), share_inputs=True)
        values = np.array(results[self._output])
        return check_shape(values, len(next(iter(batch.values()))))


class OpenVino:
    """Builds a compiled blob. The blob does not know its precision: the hint is kept with it."""

    offers: tuple[Precision, ...] = tuple(_HINTS)

    def version(self) -> str:
        """Version of OpenVINO."""
        return f"openvino {ov.__version__.split('-')[0]}"

    def stand_in(self, precision: Precision) -> str | None:
        """`onnxruntime`, which rounds, where the CPU has no such type and another would run."""
        capabilities = ov.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        needed = _CAPABILITIES.get(precision)
        return "onnxruntime" if needed and needed not in capabilities else None

    def limitation(self, precision: Precision) -> str:
        """Name what the processor lacks for `precision`."""
        if precision is Precision.FP16:
            return "the CPU lacks AVX512-FP16"
        if precision is Precision.BF16:
            return "the CPU lacks AVX512-BF16 and AMX-BF16"
        return "OpenVINO kept these operators in higher precision"

    def build(
        self, model: Exported, precision: Precision, calibration: Batch, folder: Path
    ) -> Mapping[str, Any]:
        """Write `engine.blob`, compiled for this processor."""
        if precision is Precision.INT8 and not model.nature.is_quantised:
            return self.keeping(model, precision, calibration).build(frozenset(), folder)
        return _compile(ov.Core().read_model(str(model.onnx)), model, precision, folder)

    def keeping(self, model: Exported, precision: Precision, calibration: Batch) -> Keeping:
        """The model quantised once; what is kept loses its quantisers, with their ranges."""
        if precision is not Precision.INT8:
            raise EngineError(f"OpenVINO keeps layers in fp32 for int8 only, not for {precision}")
        graph = quantize(ov.Core().read_model(str(model.onnx)), calibration)

        def build(nodes: frozenset[str], folder: Path) -> Mapping[str, Any]:
            return _compile(without_quantizers(graph, nodes), model, precision, folder)

        return Keeping(quantized_nodes(graph), build)

    @contextlib.contextmanager
    def load(
        self, folder: Path, properties: Mapping[str, Any], probe: Batch, threads: int
    ) -> Iterator[OpenVinoEngine]:
        """Import the blob with the hint it was built for."""
        with _loading(folder):
            compiled = _import(folder, _config(properties["hint"], threads))
            engine = OpenVinoEngine(compiled, properties["output"], probe)
        yield engine

    def profile(
        self, folder: Path, properties: Mapping[str, Any], batch: Batch, threads: int
    ) -> Profile:
        """Profile its time by the runtime's own counters."""
        config = {**_config(properties["hint"], threads), "PERF_COUNT": True}
        with _loading(folder):
            return read_profile(_import(folder, config), batch)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot load {folder / _FILE}: {error}") from error


def _import(folder: Path, config: Mapping[str, Any]) -> Any:
    return ov.Core().import_model(_read_blob(folder / _FILE), _DEVICE, dict(config))


def _read_blob(path: Path) -> Any:
    """The blob in memory of OpenVINO's own, once: `tensor_from_file` has it there twice."""
    tensor = ov.Tensor(ov.Type.u8, ov.Shape([path.stat().st_size]))
    with path.open("rb") as file:
        file.readinto(tensor.data)
    return tensor


def _compile(graph: Any, model: Exported, precision: Precision, folder: Path) -> Mapping[str, Any]:
    """Write the blob; return what `load` needs."""
    hint = _HINTS[precision]
    compiled = ov.Core().compile_model(graph, _DEVICE, _config(hint, threads=1))
    with (folder / _FILE).open("wb") as file:
        blob = _Blob(file)
        try:
            compiled.export_model(blob)
        finally:
            if blob.failure:
                raise blob.failure
    return {"hint": hint, "output": model.output}


class _Blob(io.BytesIO):
    """Hands on to a file what OpenVINO exports, which it writes into a BytesIO only.

    There it would be one more copy of the model. Where the file cannot be written, OpenVINO may go
    on without a word, so the failure is kept.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        return self._tried(lambda: self._file.write(content))

    def seek(self, place: int, whence: int = 0) -> int:
        return self._tried(lambda: self._file.seek(place, whence))

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._tried(self._file.flush)

    def _tried(self, act: Callable[[], Made]) -> Made:
        try:
            return act()
        except OSError as error:
            self.failure = error
            raise


def _config(hint: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }


def _read_graph(graph: Any) -> Executed:
    operations = [o for o in graph.get_ops() if _multiplies(o.get_rt_info())]
    return Executed(dict(collections.Counter(map(_type_of, operations))))


def _type_of(operation: Any) -> str:
    """Element type that an operation computed in.

    That of a subgraph is the runtime's for its lowest operand, be that a mask of truths as u8: it
    multiplies in whole numbers only where most of its operands are such.
    """
    info = operation.get_rt_info()
    said = _text(info, "runtimePrecision")
    if _text(info, "layerType") != "Subgraph" or said not in _TYPES_OF_MASKS:
        return said
    types = [value.get_element_type().get_type_name() for value in operation.inputs()]
    ((most, _),) = collections.Counter(types).most_common(1)
    return most if most in _FLOATS else said


def _multiplies(info: Any) -> bool:
    """Tell if a node multiplies matrices, alone or fused into a subgraph with others."""
    names = _text(info, "originalLayersNames").lower()
    kind = _text(info, "layerType")
    return kind in _MATMULS or (kind == "Subgraph" and "matmul" in names)


def _text(info: Any, key: str) -> str:
    return str(info[key].value) if key in info else ""


def read_profile(compiled: Any, batch: Batch) -> Profile:
    """A profile of a model compiled with PERF_COUNT, over a few runs of `batch`."""
    request = compiled.create_infer_request()
    for _ in range(_UNTIMED):
        request.infer(dict(batch))
    types = _types(compiled)
    taken = []
    for _ in range(_RUNS):
        request.infer(dict(batch))
        taken += list(_kernels(request.profiling_info, types))
    return profile_of(taken, _states(compiled, [kernel for kernel, _ in taken]))


def _types(compiled: Any) -> Mapping[str, str]:
    """Element type by operation; known after an inference."""
    operations = compiled.get_runtime_model().get_ops()
    types = {operation.get_friendly_name(): _type_of(operation) for operation in operations}
    return {name: kind for name, kind in types.items() if kind}


def _kernels(counters: Any, types: Mapping[str, str]) -> Iterator[tuple[Kernel, float]]:
    for counter in counters:
        name, made = counter.node_name, counter.exec_type
        kernel = Kernel(name, counter.node_type, types.get(name, "unknown"), made, 0.0)
        yield kernel, counter.real_time.total_seconds()


def _states(compiled: Any, ran: list[Kernel]) -> dict[str, str]:
    flushed = compiled.get_property("CPU_DENORMALS_OPTIMIZATION")
    uses_amx = any("amx" in kernel.implementation for kernel in ran)
    return {
        "provider": "CPU",
        "precision hint": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        "denormals": "flushed to zero" if flushed else "kept",
        "TF32": "none on a CPU",
        "AMX": "used" if uses_amx else "not used",
    }
