"""The ceilings of this machine, measured: matrix products by the engine's own library, and memory.

Each is the fastest of many calls, so that an engine is not faster by luck.
"""

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from enginegate.cache import Store
from enginegate.diagnostics.roofline.device import Device, Memory
from enginegate.engines import get_backend, registration
from enginegate.errors import EngineError
from enginegate.files import scratch_folder, sha256_of
from enginegate.machine import this_machine
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.variants import Precision

_RECIPE = 1  # raise when the same ceiling would be measured otherwise
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_WIDTH, _PRODUCTS, _ROWS = 1024, 8, (128, 512)
_INPUT, _OUTPUT = "input_ids", "sentence_embedding"
_MEASURE_S = 1.0
_LARGEST = 1 << 28
Words = npt.NDArray[np.int64]

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def measured_device(
    store: Store, engines: Mapping[str, tuple[str, Precision]], threads: int
) -> Device:
    """This machine's ceilings, from the store once they were measured.

    `engines` says by the name of a peak which backend and precision to measure it with.
    Raises EngineError if the products cannot be built or run, and for an engine on a GPU, whose
    memory is not measured yet.
    """
    if on_gpu := sorted({backend for backend, _ in engines.values() if registration(backend).gpu}):
        raise EngineError(
            f"the ceilings of a GPU are not measured ({', '.join(on_gpu)}): state them in a file "
            "and use `enginegate roofline --device-profile FILE`"
        )
    peaks = {name: _peak(store, *engine, threads) for name, engine in engines.items()}
    memory = _memory(store, threads)
    caches = ", ".join(f"{m.name} {m.capacity_bytes / 2**20:g} MiB" for m in memory[:-1])
    return Device(
        name=f"{this_machine().id}, threads: {threads}",
        source=f"measured, the fastest of many calls; caches: {caches or 'not known'}",
        peaks_per_s=peaks,
        memory=memory,
    )


def _peak(store: Store, backend: str, precision: Precision, threads: int) -> float:
    """FLOP/s of a chain of matrix products, built and run as any engine of the backend is."""

    def measure(_folder: Path) -> Mapping[str, Any]:
        with scratch_folder() as folder:
            return {"peak_per_s": _measure_peak(folder, backend, precision, threads)}

    key = _key(threads, backend=get_backend(backend).version(), precision=str(precision))
    return float(store.get_or_build("ceiling", key, measure).properties["peak_per_s"])


def _key(threads: int, **more: str) -> dict[str, Any]:
    machine = this_machine().as_json()
    return {"recipe": _RECIPE, "machine": machine, "threads": threads, **more}


def _measure_peak(folder: Path, backend: str, precision: Precision, threads: int) -> float:
    model = _write_products(folder / "products.onnx")
    rng = np.random.default_rng(0)
    inputs = {rows: {_INPUT: rng.integers(0, 2, (rows, _WIDTH))} for rows in _ROWS}
    runtime = get_backend(backend)
    properties = runtime.build(model, precision, inputs[_ROWS[0]], folder)
    with runtime.load(folder, properties, inputs[_ROWS[0]], threads) as engine:
        return max(
            _flops(rows) / fastest_s(partial(engine.embed, batch)) for rows, batch in inputs.items()
        )


def _flops(rows: int) -> int:
    return 2 * rows * _PRODUCTS * _WIDTH * _WIDTH


def fastest_s(call: Callable[[], object]) -> float:
    """Seconds of the fastest call within a second, of two calls at least."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _write_products(path: Path) -> Exported:
    """Ids [rows, 1024] through 8 products of 1024 x 1024, Relu between, to [rows, 16]."""
    rng = np.random.default_rng(1)
    nodes = [helper.make_node("Cast", [_INPUT], ["x0"], to=TensorProto.FLOAT)]
    weights = []
    for n in range(_PRODUCTS):
        values = rng.normal(size=(_WIDTH, _WIDTH)).astype(np.float32) / np.float32(_WIDTH**0.5)
        weights.append(numpy_helper.from_array(values, f"w{n}"))
        nodes.append(helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"y{n}"]))
        nodes.append(helper.make_node("Relu", [f"y{n}"], [f"x{n + 1}"]))
    last = numpy_helper.from_array(rng.normal(size=(_WIDTH, 16)).astype(np.float32), "last")
    nodes.append(helper.make_node("MatMul", [f"x{_PRODUCTS}", "last"], [_OUTPUT]))
    _save(path, nodes, [*weights, last])
    spec = ModelSpec(name="products", kind=Kind.ONNX, source=str(path))
    return Exported(spec, path, sha256_of(path), "seeded", None, {_INPUT: "ids"}, _OUTPUT)


def _save(path: Path, nodes: list[Any], weights: list[Any]) -> None:
    ids = helper.make_tensor_value_info(_INPUT, TensorProto.INT64, ["rows", _WIDTH])
    output = helper.make_tensor_value_info(_OUTPUT, TensorProto.FLOAT, ["rows", 16])
    graph = helper.make_graph(nodes, "products", [ids], [output], weights)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))


def _memory(store: Store, threads: int) -> tuple[Memory, ...]:
    """The caches from the second level on, and main memory."""
    caches = cache_sizes(_CACHES)

    def measure(_folder: Path) -> Mapping[str, Any]:
        beyond = max(_LARGEST, 4 * max(caches.values(), default=0))  # bytes that no cache holds
        sizes = [*(size // 2 for size in caches.values()), beyond]
        return {"bytes_per_s": [read_rate(size, threads) for size in sizes]}

    rates = store.get_or_build("ceiling", _key(threads, memory=str(caches)), measure).properties
    names = [*caches.items(), ("DRAM", float("inf"))]
    levels = zip(names, rates["bytes_per_s"], strict=True)
    return tuple(Memory(name, size, rate) for (name, size), rate in levels)


def cache_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the data caches from level 2 on, as the system states them; empty if it does not."""
    found = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        stated = re.fullmatch(r"(\d+)([KMG])", size)
        if stated and kind != "Instruction" and int(level) > 1:
            found[f"L{level}"] = int(stated[1]) * _UNITS[stated[2]]
    return found


def read_rate(size_bytes: int, threads: int) -> float:
    """Bytes per second of reading that many bytes over and over, each thread its share.

    The kernels are reductions that do next to nothing with what they read; the fastest counts.
    """
    times = max(1, _LARGEST // size_bytes)
    shares = [np.ones(size_bytes // 8 // threads, np.int64) for _ in range(threads)]
    repeated = [np.broadcast_to(share, (times, len(share))) for share in shares]
    with ThreadPoolExecutor(threads) as pool:
        best_s = min(_reading_s(pool, kernel, repeated) for kernel in _KERNELS)
    return times * sum(share.nbytes for share in shares) / best_s


def _reading_s(pool: Executor, kernel: Callable[[Words], object], shares: list[Words]) -> float:
    return fastest_s(lambda: list(pool.map(kernel, shares)))


def _or_words(rows: Words) -> object:
    return np.bitwise_or.reduce(rows, axis=1)


def _largest_byte(rows: Words) -> object:
    return [row.view(np.uint8).max() for row in rows]


_KERNELS = (_or_words, _largest_byte)
