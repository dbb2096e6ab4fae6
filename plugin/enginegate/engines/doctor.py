"""What is installed, what can be used, and what to install for what cannot: `enginegate doctor`."""

from collections.abc import Iterator
from importlib.metadata import metadata, requires
from typing import TYPE_CHECKING

from enginegate.engines.registry import REGISTERED, check_runnable, get_backend, resolve, what_lacks
from enginegate.engines.wheels import fitting_extra
from enginegate.errors import EngineGateError
from enginegate.machine import Gpu, find_gpus, installed_version, read_state

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Finding = tuple[str, str, str]  # what was looked for, `usable` or `missing`, what to know of it

HEADER = ("what", "state", "details")
_YES, _NO = "usable", "missing"
_PACKAGE = "pytest-enginegate"
_EXTRAS = {
    "cpu": "engines on a processor, and the reference",
    "export": "models that are no .onnx files yet",
    "gpu-cu12": "engines on an NVIDIA GPU, by CUDA 12; in an environment without the extra cpu",
    "gpu-cu13": "engines on an NVIDIA GPU, by CUDA 13; in an environment without the extra cpu",
    "minilm": "the shipped model minilm",
    "pycuda": "ENGINEGATE_CUDA=pycuda, in place of cuda-bindings",
    "report": "--gate-report-html",
    "serve": "--gate-serve",
}
_BOTH = (
    "onnxruntime and onnxruntime-gpu share their files: pip uninstall -y onnxruntime "
    "onnxruntime-gpu, then install the one you want"
)
_CONFIRM = "pytest tests/test_gpu.py -m gpu --require-gpu, in a checkout: see docs/gpu.md"


def findings() -> Iterator[Finding]:
    """The GPU, every backend, and what the optional parts need."""
    yield _driver()
    yield from (_backend(name) for name in REGISTERED)
    yield from map(_extra, metadata(_PACKAGE).get_all("Provides-Extra", []))


def advice() -> Iterator[str]:
    """Advice: what `auto` is, packages that exclude each other, how to confirm a GPU."""
    name, why = resolve("auto")
    if why:
        yield why
    try:
        check_runnable(name)
    except EngineGateError as error:
        yield f"a run would end at once: {error}"
    if installed_version("onnxruntime") and installed_version("onnxruntime-gpu"):
        yield _BOTH
    if gpus := find_gpus().gpus:
        yield from _fitting(gpus[0])
        yield f"to confirm that the GPU path works here: {_CONFIRM}"


def _fitting(gpu: Gpu) -> Iterator[str]:
    """The extra whose CUDA the driver can run."""
    if extra := fitting_extra(gpu.cuda[0]):
        has = ".".join(map(str, gpu.cuda))
        yield f"the driver has CUDA {has}: the extra {extra} fits it"


def _driver() -> Finding:
    found = find_gpus()
    if not found.gpus:
        return ("NVIDIA GPU", _NO, found.reason)
    names = ", ".join(f"{gpu.name} (compute capability {gpu.capability})" for gpu in found.gpus)
    state = read_state()
    slowed = f"; throttled now: {', '.join(state.throttling)}" if state and state.throttling else ""
    return ("NVIDIA GPU", _YES, f"{names}, driver {found.gpus[0].driver}{slowed}")


def _backend(name: str) -> Finding:
    if lacking := what_lacks(name):
        return (f"backend {name}", _NO, lacking)
    try:
        return (f"backend {name}", _YES, get_backend(name).version())
    except EngineGateError as error:
        return (f"backend {name}", _NO, str(error))


def _extra(extra: str) -> Finding:
    """The packages that an extra brings, as this package's own metadata names it."""
    name, purpose = f"extra {extra}", f"for {_EXTRAS.get(extra, extra)}"
    found = {each: installed_version(each.name) for each in _brought_by(extra)}
    if missing := [str(each.name) for each, version in found.items() if version is None]:
        said = f"{', '.join(missing)} not installed, {purpose}"
        return (name, _NO, f"{said}: pip install '{_PACKAGE}[{extra}]'")
    if old := [f"{e.name} {v}" for e, v in found.items() if not _fits(e, v)]:
        said = f"{', '.join(old)} too old or too new, {purpose}"
        return (name, _NO, f"{said}: pip install --upgrade '{_PACKAGE}[{extra}]'")
    versions = ", ".join(f"{each.name} {version}" for each, version in found.items())
    return (name, _YES, f"{versions}, {purpose}")


def _brought_by(extra: str) -> Iterator["Requirement"]:
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requires(_PACKAGE) or ()):
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield requirement


def _fits(requirement: "Requirement", version: str | None) -> bool:
    return requirement.specifier.contains(version or "", prereleases=True)
