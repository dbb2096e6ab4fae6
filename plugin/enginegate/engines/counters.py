"""Where the time of an OpenVINO engine goes, by the runtime's own counters."""

from collections.abc import Iterator, Mapping
from typing import Any

from enginegate.profiles import Kernel, Profile, profile_of
from enginegate.workload import Batch

_RUNS, _UNTIMED = 10, 3


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
    infos = {operation.get_friendly_name(): operation.get_rt_info() for operation in operations}
    key = "runtimePrecision"
    return {name: str(info[key].value) for name, info in infos.items() if key in info}


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
