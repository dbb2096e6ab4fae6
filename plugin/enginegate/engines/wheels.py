"""The CUDA that installed wheels were built for, beside the CUDA that the driver has.

A driver runs every CUDA up to its own, and within a major version newer ones too. A wheel of a
later major version loads, and then fails at its first call.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from enginegate.machine import find_gpus, installed_version

_BINDINGS: Mapping[str, int] = MappingProxyType(  # distributions of TensorRT's Python module
    {f"tensorrt_cu{major}_bindings": major for major in (12, 13)}
)
_BUILT_FOR = re.compile(r"^cuda_version = '(\d+)", re.MULTILINE)
FITTING = MappingProxyType({12: "gpu-cu12", 13: "gpu-cu13"})  # extras of this package, by CUDA


def beyond_driver(packages: Sequence[str]) -> str:
    """Tell which wheels of `packages` need a later CUDA than the driver's; empty for none."""
    gpus = find_gpus().gpus
    needs = {wheel: cuda for wheel, cuda in _wheels(packages) if gpus and cuda > gpus[0].cuda[0]}
    if not needs:
        return ""
    wheels = ", ".join(f"{wheel} needs CUDA {cuda}" for wheel, cuda in needs.items())
    has = ".".join(map(str, gpus[0].cuda))
    return f"the driver has CUDA {has}, {wheels}: update the driver, or {_instead(gpus[0].cuda[0])}"


def fitting_extra(cuda: int) -> str:
    """The extra of this package for a driver of that major version of CUDA; empty for none."""
    return FITTING.get(min(cuda, max(FITTING)), "")


def _instead(cuda: int) -> str:
    extra = fitting_extra(cuda)
    if not extra:
        return "use another machine: no version of this package works with that driver"
    return f"pip install 'pytest-enginegate[{extra}]' in a new environment"


def _wheels(packages: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The wheels of these packages that are built for a CUDA, with its major version."""
    if "tensorrt" in packages:
        yield from ((name, cuda) for name, cuda in _BINDINGS.items() if installed_version(name))
        if bindings := installed_version("cuda-bindings"):
            yield "cuda-bindings", int(bindings.partition(".")[0])
    if "onnxruntime" in packages and (cuda := _of_onnxruntime()):
        yield "onnxruntime-gpu", cuda


def _of_onnxruntime() -> int:
    """CUDA of the installed onnxruntime, as its own file says it; 0 for that of a processor."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return 0
    path = Path(spec.origin).parent / "capi" / "build_and_package_info.py"
    found = _BUILT_FOR.search(path.read_text(encoding="utf-8")) if path.exists() else None
    return int(found[1]) if found else 0
