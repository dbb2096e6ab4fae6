"""Which machine this is: what makes figures comparable, and what only explains them."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_SPEED_FLAGS = re.compile(r"^(avx.*|amx.*|fma|f16c|sse4.*|asimd.*|sve.*|fphp|bf16|i8mm)$")
_LIBRARIES = ("numpy", "nncf", "onnx", "onnxruntime", "openvino", "torch", "transformers")


@dataclass(frozen=True)
class Machine:
    """Identity of a machine. Figures of two machines that differ in any field are incomparable.

    Attributes:
        cpu: the processor's name with family, model and stepping.
        cores: processors this process may use.
        isa: instruction sets that matter to engines, sorted.
        system: operating system and architecture.
    """

    cpu: str
    cores: int
    isa: tuple[str, ...]
    system: str

    @property
    def id(self) -> str:
        """Folder name of its baselines: readable, with a hash that makes it unique."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        slug = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")[:40]
        return f"{slug}-{self.cores}c-{digest}"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "isa": list(self.isa)}


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
