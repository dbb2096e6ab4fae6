"""What is installed, what can be used, and what to install for what cannot: `enginegate doctor`."""

from collections.abc import Iterator
from importlib.util import find_spec

from enginegate.engines.registry import REGISTERED, get_backend, resolve, what_lacks
from enginegate.errors import EngineGateError
from enginegate.machine import find_gpus, installed_version, read_state

Finding = tuple[str, str, str]  # what was looked for, `usable` or `missing`, what to know of it

HEADER = ("what", "state", "details")
_YES, _NO = "usable", "missing"
_EXTRAS = {  # module: what it is for, and what brings it
    "torch": ("export of models", "export"),
    "transformers": ("export of models", "export"),
    "nncf": ("int8 with OpenVINO", "cpu"),
    "tritonclient": ("--serve", "serve"),
    "pynvml": ("clocks and throttling of a GPU", "gpu"),
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
    yield from (_extra(module, *what) for module, what in _EXTRAS.items())


def advice() -> Iterator[str]:
    """Advice: what `auto` is, packages that exclude each other, how to confirm a GPU."""
    if why := resolve("auto")[1]:
        yield why
    if installed_version("onnxruntime") and installed_version("onnxruntime-gpu"):
        yield _BOTH
    if find_gpus().gpus:
        yield f"to confirm that the GPU path works here: {_CONFIRM}"


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


def _extra(module: str, purpose: str, extra: str) -> Finding:
    if find_spec(module) is None:
        said = f"for {purpose}: pip install 'pytest-enginegate[{extra}]'"
        return (module, _NO, said)
    version = installed_version(module) or installed_version("nvidia-ml-py") or ""
    return (module, _YES, f"{version}, for {purpose}".removeprefix(", "))
