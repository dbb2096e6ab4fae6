"""A TensorRT plan on the GPU: buffers, shapes, addresses, one inference, and its times.

The order is TensorRT's: shapes and addresses, then the inference, then the stream is synchronised;
what was enqueued is not done before. Objects are given up in the order context,
engine, runtime, memory, while the CUDA context is still current.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt as trt

from enginegate.engines.api import Phases
from enginegate.engines.tensorrt.device import Cuda, Graph, Memory, Pinned
from enginegate.engines.tensorrt.log import the_log
from enginegate.errors import EngineError

Array = npt.NDArray[Any]
_AS_LARGE_AS_ITS_PROFILE = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
_MIB = 1 << 20
_NUMPY: Mapping[trt.DataType, np.dtype[Any]] = MappingProxyType(
    {
        trt.DataType.FLOAT: np.dtype(np.float32),
        trt.DataType.HALF: np.dtype(np.float16),
        trt.DataType.INT32: np.dtype(np.int32),
        trt.DataType.INT64: np.dtype(np.int64),
    }
)


@dataclass(frozen=True)
class Tensor:
    """An input or output with buffers for its largest shape."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool
    pinned: Pinned
    memory: Memory

    def view(self, shape: tuple[int, ...]) -> Array:
        """The beginning of the page-locked memory, as an array of `shape`."""
        size = int(np.prod(shape)) * self.dtype.itemsize
        if size > self.pinned.array.size:
            raise EngineError(f"{self.name} of shape {shape} does not fit its buffer")
        found: Array = self.pinned.array[:size].view(self.dtype).reshape(shape)
        return found


class PlanRunner:
    """A plan on the GPU. `load` it once, `close` it before the context; `open_plan` does both.

    It has an execution context for every profile. They are named by index, for what holds one, be
    it the traceback of an error, keeps it alive when the engine goes.
    """

    def __init__(self, cuda: Cuda, output: str) -> None:
        self._cuda, self._output, self._log = cuda, output, the_log()
        self._stream = cuda.stream()
        self._events = tuple(cuda.event() for _ in range(4))
        self._graphs: dict[tuple[tuple[int, ...], ...], Graph] = {}  # by shapes
        self._no_graph = "" if cuda.has_graphs else "pycuda has none"
        self._tensors: list[Tensor] = []
        self._contexts: list[trt.IExecutionContext] = []  # by profile
        self._shapes: list[dict[str, tuple[int, ...]]] = []  # of the inputs of each
        self._latest = 0  # profile that ran
        self._enqueue_s = 0.0

    def load(self, plan: Path) -> None:
        """Load a plan and make room for the largest shapes of its profile."""
        self._runtime = trt.Runtime(self._log)
        self._engine = self._deserialize(plan)
        for profile in range(self._engine.num_optimization_profiles):
            self._contexts.append(self._make_context(plan))
            self._take_profile(profile, plan)
        for name in self._names():  # by the last context, whose shapes are the largest
            self._tensors.append(self._tensor(name))
        for profile in range(len(self._contexts)):
            self._set_addresses(profile)
        self._stream.synchronize()

    def _make_context(self, plan: Path) -> trt.IExecutionContext:
        made = self._engine.create_execution_context(_AS_LARGE_AS_ITS_PROFILE)
        if made is None:
            raise self._log.error(f"TensorRT cannot make a context for {plan}, is memory short?")
        return made

    def _take_profile(self, profile: int, plan: Path) -> None:
        """Let the context of a profile have it, and the largest inputs."""
        handle = self._stream.handle
        if not self._contexts[profile].set_optimization_profile_async(profile, handle):
            raise self._log.error(f"TensorRT refuses profile {profile} of {plan}")
        self._shapes.append({})
        for name in filter(self._is_input, self._names()):
            largest = self._engine.get_tensor_profile_shape(name, profile)[2]
            self._set_input_shape(profile, name, _sizes(largest))

    def _set_addresses(self, profile: int) -> None:
        """Set them once: buffers stay where they are."""
        for tensor in self._tensors:
            if not self._contexts[profile].set_tensor_address(tensor.name, tensor.memory.address):
                raise self._log.error(f"TensorRT refuses the address of {tensor.name}")

    @property
    def usual_shapes(self) -> list[tuple[int, ...]]:
        """The shapes (texts, tokens) that the plan is fastest at, by profile."""
        (name, *_) = (tensor.name for tensor in self._inputs)
        shapes = (self._engine.get_tensor_profile_shape(name, i) for i in range(self._count))
        return [_sizes(usual) for _, usual, _ in shapes]

    @property
    def _count(self) -> int:
        return len(self._contexts)

    @property
    def _inputs(self) -> list[Tensor]:
        return [tensor for tensor in self._tensors if tensor.is_input]

    @property
    def _outputs(self) -> list[Tensor]:
        return [tensor for tensor in self._tensors if not tensor.is_input]

    def _deserialize(self, plan: Path) -> trt.ICudaEngine:
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise self._log.error(f"TensorRT cannot load {plan}: delete it to build it again")
        return engine

    def _names(self) -> list[str]:
        """Of all tensors, inputs first: their shapes decide those of the outputs."""
        count = self._engine.num_io_tensors
        names = [self._engine.get_tensor_name(index) for index in range(count)]
        return sorted(names, key=lambda name: not self._is_input(name))

    def _tensor(self, name: str) -> Tensor:
        dtype, is_input = self._numpy_type(name), self._is_input(name)
        size = int(np.prod(self._shapes[-1][name] if is_input else self._output_shape(-1, name)))
        size = max(size, 1) * dtype.itemsize
        return Tensor(name, dtype, is_input, self._cuda.pinned(size), self._cuda.memory(size))

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)

    def _numpy_type(self, name: str) -> np.dtype[Any]:
        found = self._engine.get_tensor_dtype(name)
        if found not in _NUMPY:
            raise EngineError(f"{name} is {found.name} in the plan, which no host array holds")
        return _NUMPY[found]

    def _output_shape(self, profile: int, name: str) -> tuple[int, ...]:
        """The shape of an output for the input shapes that a context has."""
        shape = _sizes(self._contexts[profile].get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise EngineError(f"the shape of {name} depends on the data: export it with fixed axes")
        return shape

    def _set_input_shape(self, profile: int, name: str, shape: tuple[int, ...]) -> None:
        if not self._contexts[profile].set_input_shape(name, shape):
            smallest = self._engine.get_tensor_profile_shape(name, 0)[0]
            largest = self._engine.get_tensor_profile_shape(name, len(self._contexts) - 1)[2]
            raise self._log.error(
                f"{name} of shape {shape} is outside the engine's profile, from "
                f"{_sizes(smallest)} to {_sizes(largest)}: ask for that batch size with "
                "--gate-batches"
            )
        self._shapes[profile][name] = shape

    def run(self, batch: Mapping[str, Array]) -> Array:
        """The embedding output for the inputs, as it is in the plan's type, a copy."""
        self._latest = profile = self._profile_for(batch)
        self._set_shapes(profile, batch)
        outputs = {t.name: t.view(self._output_shape(profile, t.name)) for t in self._outputs}
        self._enqueue(batch, outputs)
        self._stream.synchronize()
        found = np.array(outputs[self._output])
        self._capture()
        return found

    def _profile_for(self, batch: Mapping[str, Array]) -> int:
        """The first profile that takes so many rows of so many tokens, else the last one."""
        shape = max((values.shape for values in batch.values()), default=())
        (name, *_) = (tensor.name for tensor in self._inputs)
        for profile in range(len(self._contexts)):
            largest = self._engine.get_tensor_profile_shape(name, profile)[2]
            if all(size <= most for size, most in zip(shape, _sizes(largest), strict=False)):
                return profile
        return len(self._contexts) - 1

    def _set_shapes(self, profile: int, batch: Mapping[str, Array]) -> None:
        for tensor in self._inputs:
            if tensor.name not in batch or batch[tensor.name].dtype != tensor.dtype:
                given = {name: str(values.dtype) for name, values in batch.items()}
                raise EngineError(f"the plan needs {tensor.name} as {tensor.dtype}, not {given}")
            if self._shapes[profile].get(tensor.name) != batch[tensor.name].shape:
                self._set_input_shape(profile, tensor.name, batch[tensor.name].shape)
        if missing := self._contexts[profile].infer_shapes():
            raise self._log.error(f"TensorRT lacks the shapes of {missing}")

    def _enqueue(self, batch: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        staged = [(tensor.memory, _staged(tensor, batch)) for tensor in self._inputs]
        self._events[0].record(self._stream)
        for memory, pinned in staged:
            self._cuda.copy_in(memory, pinned, self._stream)
        self._events[1].record(self._stream)
        self._execute()
        self._events[2].record(self._stream)
        for tensor in self._outputs:
            self._cuda.copy_out(outputs[tensor.name], tensor.memory, self._stream)
        self._events[3].record(self._stream)

    def _execute(self) -> None:
        start, graph = time.perf_counter(), self._graphs.get(self._key)
        if graph:
            graph.launch(self._stream)
        else:
            self._infer()
        self._enqueue_s = time.perf_counter() - start

    def _infer(self) -> None:
        if not self._contexts[self._latest].execute_async_v3(self._stream.handle):
            raise self._log.error("TensorRT cannot run the engine")

    @property
    def _key(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self._shapes[self._latest][tensor.name] for tensor in self._inputs)

    def _capture(self) -> None:
        """Keep the inference that was just done as a graph, for the next call of these shapes.

        TensorRT has to have run once with them: what it does only then must not be in the graph.
        """
        if self._no_graph or self._key in self._graphs:
            return
        try:
            self._graphs[self._key] = self._cuda.capture(self._stream, self._infer)
        except (self._cuda.error, EngineError) as error:
            self._no_graph = str(error)

    @property
    def mode(self) -> str:
        """What a call is, and what TensorRT takes for it beside weights."""
        graph = f"off ({self._no_graph})" if self._no_graph else "on"
        most = self._engine.device_memory_size_v2 / _MIB
        return (
            f"transfers in, CUDA graph {graph}, stream synchronised after every call; "
            f"up to {most:.0f} MiB for each profile's execution context"
        )

    @property
    def phases(self) -> Phases:
        """Times of the latest call."""
        begun, copied, computed, done = self._events
        return Phases(
            h2d_s=begun.seconds_until(copied),
            compute_s=copied.seconds_until(computed),
            d2h_s=computed.seconds_until(done),
            enqueue_s=self._enqueue_s,
        )

    def inspect(self) -> str:
        """The engine inspector's JSON, for the shapes of the latest call."""
        inspector = self._engine.create_engine_inspector()
        # without a context, dynamic layers have no types
        inspector.execution_context = self._contexts[self._latest]
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Give up TensorRT's objects, then memory, stream and events; all that was made so far.

        Every step is taken, also after one that failed; the first error is then raised.
        """
        graphs = [graph.close for graph in self._graphs.values()]
        memory = [step for t in self._tensors for step in (t.memory.free, t.pinned.free)]
        others = [event.close for event in self._events] + [self._stream.close]
        steps = (self._stream.synchronize, *graphs, self._drop_objects, *memory, *others)
        errors = [error for step in steps if (error := self.tried(step))]
        self._graphs, self._tensors = {}, []
        if errors:
            raise errors[0]

    def _drop_objects(self) -> None:
        self._contexts = []
        for name in ("_engine", "_runtime"):
            vars(self).pop(name, None)

    def tried(self, step: Callable[[], None]) -> Exception | None:
        """Return the CUDA error of a step; after one that sticks, every other step has it too."""
        try:
            step()
        except self._cuda.error as error:
            return error
        return None


@contextlib.contextmanager
def open_plan(cuda: Cuda, plan: Path, output: str) -> Iterator[PlanRunner]:
    """A loaded plan, closed in the end; an error inside is raised, not one of the closing."""
    runner = PlanRunner(cuda, output)
    try:
        runner.load(plan)
        yield runner
    except BaseException:
        runner.tried(runner.close)
        raise
    runner.close()


def _staged(tensor: Tensor, batch: Mapping[str, Array]) -> Array:
    """The input in page-locked memory; done before anything is timed on the stream."""
    pinned = tensor.view(batch[tensor.name].shape)
    np.copyto(pinned, batch[tensor.name])
    return pinned


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(dims[index] for index in range(len(dims)))
