"""A fake TensorRT on the fake device: names, arguments and answers of 10.16 and 11.4.

`tests/stubs` compares every signature with those of the real bindings. What TensorRT refuses is
False or None and a message for the logger; what would be undefined is a `Misuse`. It is stricter
than TensorRT in one way: addresses are only taken after the input shapes.
"""

import enum
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from fake_device import STATE, Counted, Misuse, enqueue, memory_at, need_context
from fake_network import (
    dim_of,
    inspector_layers,
    kernels_of,
    runnable,
    types_of_matmuls,
    unsupported,
)

__version__ = STATE.tensorrt
STATE.logger = None  # imported once in a process
_MAGIC = b"fake plan\n"
_FEW_ROWS = 2
_CONTEXT_BYTES = 12 << 20


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8


_TYPES = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.float32),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.float16),
    onnx.TensorProto.INT64: (DataType.INT64, np.int64),
    onnx.TensorProto.INT32: (DataType.INT32, np.int32),
    onnx.TensorProto.BFLOAT16: (DataType.BF16, np.uint16),
}


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class BuilderFlag(enum.IntEnum):
    TF32 = 7
    REFIT = 4


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ErrorCode(enum.Enum):
    SUCCESS = 0
    UNSUPPORTED_NODE = 8


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class Dims(tuple[int, ...]):
    __slots__ = ()


class _Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = _Severity
    INTERNAL_ERROR, ERROR, WARNING = _Severity.INTERNAL_ERROR, _Severity.ERROR, _Severity.WARNING
    INFO, VERBOSE = _Severity.INFO, _Severity.VERBOSE

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: _Severity, msg: str) -> None:
        raise NotImplementedError


def _register(logger: ILogger, what: str) -> None:
    """TensorRT keeps a pointer to the first logger of a process, and writes to no other."""
    if not hasattr(logger, "_made"):
        raise Misuse("ILogger.__init__ was not called")
    if STATE.logger is None:
        STATE.logger = weakref.ref(logger)
    elif STATE.logger() is None:
        raise Misuse(f"{what} writes to a logger that was freed")
    elif STATE.logger() is not logger:
        raise Misuse(f"{what} with a second logger, whose messages are lost")


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = Dims(d if isinstance(d, int) else -1 for d in dim_of(value))


class INetworkDefinition:
    def __init__(self, typed: bool, logger: ILogger) -> None:
        self.typed, self.logger = typed, logger
        self.model: onnx.ModelProto | None = None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input) if self.model else 0

    def get_input(self, index: int) -> ITensor:
        assert self.model
        return ITensor(self.model.graph.input[index])


class ParserError:
    def __init__(self, index: int, node: onnx.NodeProto) -> None:
        self._index, self._node = index, node

    def code(self) -> ErrorCode:
        return ErrorCode.UNSUPPORTED_NODE

    def desc(self) -> str:
        return f"no importer for {self._node.op_type}"

    def node(self) -> int:
        return self._index

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _register(logger, "createParser")
        self._network, self._errors, self._logger = network, list[ParserError](), logger

    def parse_from_file(self, model: str) -> bool:
        if Path(model).stat().st_size > STATE.largest_message:
            self._logger.log(ILogger.ERROR, "failed to parse ONNX model: it exceeds 2 GB")
            return False
        content = onnx.load(model)
        STATE.parsed = [value.name for value in content.graph.output]
        for text in STATE.warns:
            self._logger.log(ILogger.WARNING, text)
        self._errors = [ParserError(index, node) for index, node in unsupported(content)]
        if not self._errors:
            self._network.model = content
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002
        triples = zip(min, opt, max, strict=True)
        if not all(a <= b <= c for a, b, c in triples):
            raise ValueError(f"shapes of {input} are not min <= opt <= max")
        self.shapes[input] = (min, opt, max)

    def __bool__(self) -> bool:
        return bool(self.shapes)


class ITimingCache:
    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps(self.content).encode())


class IBuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.flags_set = {BuilderFlag.TF32}  # as in TensorRT
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.profiles: list[IOptimizationProfile] = []
        self.cache: ITimingCache | None = None

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags_set.discard(flag)

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags_set.add(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile or "add_optimization_profile" in STATE.fails:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if not serialized_timing_cache:
            return ITimingCache(_identity())
        return ITimingCache(json.loads(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if ignore_mismatch:
            raise Misuse("timings of another GPU taken for those of this one")
        if cache.content != _identity():
            self.logger.log(ILogger.ERROR, "timing cache of another device")
            return False
        self.cache = cache
        STATE.log.append("timing cache")
        return True


class Builder:
    def __init__(self, logger: ILogger) -> None:
        need_context("createInferBuilder")
        _register(logger, "createInferBuilder")
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        typed = STATE.tensorrt.startswith("11") or bool(
            flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        return INetworkDefinition(typed, self.logger)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        need_context("buildSerializedNetwork")
        if fault := _cannot_build(network, config):
            self.logger.log(ILogger.ERROR, fault)
            return None
        assert network.model
        tf32 = BuilderFlag.TF32 in config.flags_set
        types = types_of_matmuls(network.model, typed=network.typed, tf32=tf32)
        types = {name: STATE.run_instead or kind for name, kind in types.items()}
        shapes = [
            {name: list(map(list, s)) for name, s in profile.shapes.items()}
            for profile in config.profiles
        ]
        detailed = config.profiling_verbosity is ProfilingVerbosity.DETAILED
        header = {
            "types": types,
            "kernels": kernels_of(network.model, types),
            "others": [n.name for n in network.model.graph.node if n.name not in types],
            "shapes": shapes,
            "detailed": detailed,
            **_identity(),
        }
        onnx_bytes = runnable(network.model, types)
        STATE.log.append("built")
        return IHostMemory(_MAGIC + json.dumps(header).encode() + b"\n" + onnx_bytes)


def _cannot_build(network: INetworkDefinition, config: IBuilderConfig) -> str:
    if "build" in STATE.fails:
        return "out of device memory"
    if network.model is None:
        return "network has no outputs"
    if (
        STATE.capability < (8, 0)
        and "bf16" in types_of_matmuls(network.model, typed=True, tf32=False).values()
    ):
        return "BF16 is not supported on this platform"
    if not config.profiles:
        return "network has dynamic inputs, but no optimization profile has been defined"
    missing = {i.name for i in network.model.graph.input} - set(config.profiles[0].shapes)
    return f"no shapes of {sorted(missing)}" if missing else ""


def _identity() -> dict[str, Any]:
    return {"tensorrt": STATE.tensorrt, "gpu": STATE.gpu, "capability": list(STATE.capability)}


class Runtime(Counted):
    kind = "runtime"

    def __init__(self, logger: ILogger) -> None:
        need_context("createInferRuntime")
        _register(logger, "createInferRuntime")
        if STATE.gpus == 0:
            raise Misuse("segmentation fault: a runtime without a driver")
        self.logger = logger
        self._born()

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        need_context("deserializeCudaEngine")
        found = _read_plan(bytes(serialized_engine))
        if isinstance(found, str):
            self.logger.log(ILogger.ERROR, found)
            return None
        return ICudaEngine(self, *found)


def _read_plan(plan: bytes) -> tuple[dict[str, Any], bytes] | str:
    if not plan.startswith(_MAGIC):
        return "magic tag does not match: the plan is damaged"
    header, _, model = plan[len(_MAGIC) :].partition(b"\n")
    content = json.loads(header)
    for key, mine in _identity().items():
        if content[key] != mine:
            return f"the plan was built for {key} {content[key]}, this is {mine}"
    return content, model


class EngineInspector:
    def __init__(self, engine: "ICudaEngine") -> None:
        self._engine = engine
        self.execution_context: IExecutionContext | None = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002
        if format is not LayerInformationFormat.JSON:
            return "one line a layer"
        header, split = self._engine.header, STATE.tensorrt.startswith("11")
        types, kernels = header["types"], header["kernels"]
        context = self.execution_context
        shaped = context is not None and not context.infer_shapes()
        if context is not None and context._rows > _FEW_ROWS and STATE.run_instead_of_many:
            types = dict.fromkeys(types, STATE.run_instead_of_many)
        layers = inspector_layers(kernels, header["others"], types, shaped=shaped, split=split)
        names = [layer["Name"] for layer in layers]
        detailed = layers if header["detailed"] else names
        return json.dumps({"Layers": detailed, "I/O Tensors" if split else "Bindings": []})


class ICudaEngine(Counted):
    kind = "engine"

    def __init__(self, runtime: Runtime, header: dict[str, Any], model: bytes) -> None:
        self._runtime = weakref.ref(runtime)
        self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self.logger = runtime.logger
        self.header, self.model = header, onnx.load_from_string(model)
        self.io = {v.name: v for v in (*self.model.graph.input, *self.model.graph.output)}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._born()

    @property
    def num_io_tensors(self) -> int:
        return len(self.io)

    def get_tensor_name(self, index: int) -> str:
        return list(self.io)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        inputs = {value.name for value in self.model.graph.input}
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self.io[name].type.tensor_type.elem_type][0]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [Dims(shape) for shape in self.header["shapes"][profile_index][name]]

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.header["shapes"])

    @property
    def device_memory_size_v2(self) -> int:
        return _CONTEXT_BYTES

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def create_execution_context(self, strategy: object = None) -> "IExecutionContext | None":
        need_context("createExecutionContext")
        if "create_execution_context" in STATE.fails:
            self.logger.log(ILogger.ERROR, "out of device memory")
            return None
        context = IExecutionContext(self)
        self._contexts.add(context)
        return context

    def _gone(self) -> None:
        super()._gone()
        if self._contexts:
            STATE.faults.append("engine freed before its execution context")
        if self._runtime() is None:
            STATE.faults.append("runtime freed before its engine")


class IExecutionContext(Counted):
    kind = "execution context"

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine_ref = weakref.ref(engine)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._ran = False  # with the shapes that it has
        self._profile = -1 if engine.num_optimization_profiles > 1 else 0
        self._born()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        need_context("setOptimizationProfileAsync")
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._refuse(f"no profile {profile_index}")
        if any(c is not self and c._profile == profile_index for c in self.engine._contexts):
            return self._refuse(f"profile {profile_index} is in use by another context")
        self._profile = profile_index
        enqueue(stream_handle, lambda: None)
        return True

    @property
    def engine(self) -> ICudaEngine:
        engine = self._engine_ref()
        if engine is None:
            raise Misuse("the engine was freed before its execution context")
        return engine

    def _refuse(self, message: str) -> bool:
        self.engine.logger.log(ILogger.ERROR, message)
        return False

    def set_input_shape(self, name: str, shape: Any) -> bool:
        STATE.log.append(f"shape of {name}")
        if self._profile < 0:
            raise Misuse("a context of several profiles without one")
        low, _, high = self.engine.header["shapes"][self._profile][name]
        fits = len(shape) == len(low) and all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        )
        if not fits:
            return self._refuse(f"shape {tuple(shape)} of {name} is outside the profile")
        if self._shapes.get(name) != tuple(shape):
            self._ran = False
        self._shapes[name] = tuple(shape)
        return True

    @property
    def _rows(self) -> int:
        return max((shape[0] for shape in self._shapes.values()), default=0)

    def infer_shapes(self) -> list[str]:
        return [v.name for v in self.engine.model.graph.input if v.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        sizes: dict[str, int] = {}
        for value in self.engine.model.graph.input:
            given = self._shapes.get(value.name, ())
            sizes |= dict(zip(map(str, dim_of(value)), given, strict=False))
        dims = dim_of(self.engine.io[name])
        return Dims(d if isinstance(d, int) else sizes.get(d, -1) for d in dims)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        STATE.log.append(f"address of {name}")
        if missing := self.infer_shapes():
            return self._refuse(f"address of {name} set before the shapes of {missing}")
        if name not in self.engine.io or "set_tensor_address" in STATE.fails:
            return self._refuse(f"no tensor {name}")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        need_context("enqueueV3")
        engine = self.engine
        if missing := self.infer_shapes():
            return self._refuse(f"shapes of {missing} are not set")
        if missing := sorted(set(engine.io) - set(self._addresses)):
            return self._refuse(f"addresses of {missing} are not set")
        if "execute_async_v3" in STATE.fails:
            return self._refuse("CUDA error 700")
        if stream_handle == 0:
            raise Misuse("the default stream synchronises the device in every call")
        if stream_handle in STATE.capturing and not self._ran:
            raise Misuse("captured before TensorRT ran once with these shapes")
        self._ran = True
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        alive, profile = weakref.ref(engine), self._profile

        def work() -> None:
            STATE.profiles.append(profile)
            _compute(alive(), shapes, addresses)

        enqueue(stream_handle, work)
        return True


def _compute(
    engine: ICudaEngine | None, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]
) -> None:
    if engine is None:
        raise Misuse("an engine was freed while a stream or a graph had work of it")
    if STATE.sticks_at:
        STATE.sticky = STATE.sticks_at
        return
    feeds = {}
    for value in engine.model.graph.input:
        dtype = np.dtype(_TYPES[value.type.tensor_type.elem_type][1])
        shape = shapes[value.name]
        size = int(np.prod(shape)) * dtype.itemsize
        feeds[value.name] = memory_at(addresses[value.name], size).view(dtype).reshape(shape).copy()
    names = [value.name for value in engine.model.graph.output]
    for name, result in zip(names, engine.session.run(names, feeds), strict=True):
        memory_at(addresses[name], result.nbytes)[...] = result.reshape(-1).view(np.uint8)
