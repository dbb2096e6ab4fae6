"""Which machine this is: what makes figures comparable, and what only explains them."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from enginegate.machine.gpus import find_gpus

_CPUINFO = Path("/proc/cpuinfo")
_SPEED_FLAGS = re.compile(r"^(avx.*|amx.*|fma|f16c|sse4.*|asimd.*|sve.*|fphp|bf16|i8mm)$")
_LIBRARIES = (
    "cuda-bindings",
    "numpy",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "pycuda",
    "tensorrt",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Machine:
    """Identity of a machine. Figures of two machines that differ in any field are incomparable.

    Attributes:
        cpu: the processor's name with family, model and stepping.
        cores: processors this process may use.
        isa: instruction sets that matter to engines, sorted.
        system: operating system and architecture.
        gpu: name of the first GPU, empty where CUDA has none.
    """

    cpu: str
    cores: int
    isa: tuple[str, ...]
    system: str
    gpu: str = field(default="", repr=False)  # ids of machines without one stay as they were

    @property
    def id(self) -> str:
        """Folder name of its baselines: readable, with a hash that makes it unique."""
        digest = hashlib.sha256(f"{self!r}{self.gpu}".encode()).hexdigest()[:8]
        names = [_slug(self.cpu), f"{self.cores}c", _slug(self.gpu), digest]
        return "-".join(name for name in names if name)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; without `gpu` where there is none."""
        fields = {**asdict(self), "isa": list(self.isa)}
        return {name: value for name, value in fields.items() if name != "gpu" or value}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]


@functools.cache
def this_machine() -> Machine:
    """The machine this process runs on."""
    info = _cpuinfo()
    kind = [info[k] for k in ("cpu family", "model", "stepping") if k in info]
    name = info.get("model name") or platform.processor() or platform.machine()
    words = (info.get("flags") or info.get("Features") or "").split()
    return Machine(
        cpu=" ".join([name, "/".join(kind)]).strip(),
        cores=_usable_cores(),
        isa=tuple(sorted(word for word in words if _SPEED_FLAGS.match(word))),
        system=f"{platform.system().lower()}-{platform.machine()}",
        gpu=gpus[0].name if (gpus := find_gpus().gpus) else "",
    )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape an engine, and of Python. Recorded, not compared."""
    found = {name: installed_version(name) for name in _LIBRARIES}
    installed = {name: version for name, version in found.items() if version}
    return {"python": platform.python_version(), **installed}


def _cpuinfo() -> dict[str, str]:
    try:
        first = _CPUINFO.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it; None if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
