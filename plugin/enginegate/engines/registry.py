"""Backends by name: registered, resolved, checked, loaded."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from enginegate.engines.api import ONNX_FILE, PLAN_FILE, Backend
from enginegate.engines.wheels import beyond_driver
from enginegate.errors import OptionError
from enginegate.machine import find_gpus, installed_version
from enginegate.variants import Precision

REFERENCE = "onnxruntime"  # the backend that runs the model's own file in fp32


@dataclass(frozen=True)
class TritonModel:
    """An engine's file as a backend of Triton's own runs it, without this package.

    Attributes:
        file: the engine's file, in the folder that it was built in.
        name: what Triton looks for.
        platform: of the model's configuration; empty where `backend` says it.
        backend: of the model's configuration; empty where `platform` says it.
        accelerator: the execution provider on a GPU beside CUDA's; empty for none.
    """

    file: str
    name: str
    platform: str = ""
    backend: str = ""
    accelerator: str = ""


@dataclass(frozen=True)
class Registration:
    """A known backend: its class, what it needs, how to install that, and how Triton runs it.

    Attributes:
        target: `module:Class`.
        packages: what it imports.
        install: how to install that.
        one_of: packages of which it imports one.
        gpu: whether it needs an NVIDIA GPU.
        distributions: where a package of the same name comes from several, the one that it must
            come from.
        runtime: distributions that it needs in a server, in the versions that are installed here.
        triton: for engines that a backend of Triton's own runs; None for Triton's Python backend,
            which loads the engine as the tests do.
        halves: the precisions whose engines have values in fp16, be it beside other types.
        at_once: whether threads may load several of its engines at the same time.
    """

    target: str
    packages: tuple[str, ...]
    install: str
    gpu: bool = False
    one_of: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    triton: TritonModel | None = None
    halves: tuple[Precision, ...] = (Precision.FP16,)
    at_once: bool = False


_PLAN = TritonModel(PLAN_FILE, "model.plan", platform="tensorrt_plan")
_ONNX = TritonModel(ONNX_FILE, "model.onnx", backend="onnxruntime")
_CPU = "pip install 'pytest-enginegate[cpu]'"
_GPU = (
    "pip install 'pytest-enginegate[gpu-cu13]', or gpu-cu12 for a driver older than 580, in an "
    "environment without the extra cpu"
)
_OWN: Mapping[str, Registration] = {
    "openvino": Registration(
        "enginegate.engines.openvino:OpenVino",
        ("openvino", "nncf", "onnxruntime"),
        _CPU,
        runtime=("openvino",),
        at_once=True,
    ),
    "onnxruntime": Registration(
        "enginegate.engines.onnxruntime:OnnxRuntime",
        ("onnxruntime",),
        _CPU,
        runtime=("onnx", "onnxruntime"),
        at_once=True,
    ),
    "onnxruntime-cuda": Registration(
        "enginegate.engines.onnxruntime_gpu:OnnxRuntimeCuda",
        ("onnxruntime",),
        _GPU,
        gpu=True,
        distributions=("onnxruntime-gpu",),
        triton=_ONNX,
    ),
    "onnxruntime-tensorrt": Registration(
        "enginegate.engines.onnxruntime_gpu:OnnxRuntimeTensorRt",
        ("onnxruntime", "tensorrt"),
        _GPU,
        gpu=True,
        distributions=("onnxruntime-gpu",),
        triton=replace(_ONNX, accelerator="tensorrt"),
    ),
    "tensorrt": Registration(
        "enginegate.engines.tensorrt.backend:TensorRt",
        ("tensorrt", "onnxruntime"),
        _GPU,
        gpu=True,
        one_of=("cuda.bindings", "pycuda"),
        triton=_PLAN,
        halves=(Precision.FP16, Precision.INT8),
    ),
}
REGISTERED: dict[str, Registration] = dict(_OWN)


def register(
    name: str,
    target: str,
    *,
    gpu: bool = False,
    runtime: Sequence[str] = (),
    triton: TritonModel | None = None,
    halves: Sequence[Precision] = (Precision.FP16,),
    at_once: bool = False,
) -> None:
    """Add a backend from a conftest.py: `target` is `module:Class` with a Backend class.

    `gpu`: whether it needs an NVIDIA GPU. `runtime`: distributions that it needs, here and in the
    server of `--gate-serve triton`. `triton`: for engines that a backend of Triton's own runs;
    without it Triton's Python backend loads the engine through this class. `halves`: the precisions
    whose engines have values in fp16, as an int8 engine may beside its multiplications. `at_once`:
    whether threads may load several of its engines at the same time, which saves measuring time.
    """
    named = tuple(runtime)
    install = f"pip install {' '.join(named)}"
    REGISTERED[name] = Registration(
        target, (), install, gpu, (), named, named, triton, tuple(halves), at_once
    )


def registration(name: str) -> Registration:
    """Tell what is known of a registered backend, without importing it."""
    return REGISTERED[name]


def is_shipped(name: str) -> bool:
    """Tell if the backend is this package's own code, and no project's."""
    return name in _OWN and REGISTERED[name] == _OWN[name]


def resolve(name: str) -> tuple[str, str]:
    """The backend that `auto` stands for, and why; any other name as it is, without a reason.

    `auto` is TensorRT where it can run, else OpenVINO.
    """
    if name != "auto":
        return name, ""
    if lacking := what_lacks("tensorrt"):
        return "openvino", f"backend auto: openvino, on the CPU; no tensorrt: {lacking}"
    return "tensorrt", "backend auto: tensorrt, on the GPU"


def what_lacks(name: str) -> str:
    """Name what a known backend lacks on this machine, GPU first; empty if it can run."""
    entry = REGISTERED[name]
    lacking = [] if not entry.gpu or find_gpus().gpus else [find_gpus().reason]
    missing = [package for package in entry.packages if not _is_there(package)]
    if entry.one_of and not any(map(_is_there, entry.one_of)):
        missing.append(" or ".join(entry.one_of))
    missing += [name for name in entry.distributions if installed_version(name) is None]
    if missing:
        lacking.append(f"{', '.join(missing)} not installed: {entry.install}")
    if entry.gpu and (too_new := beyond_driver(entry.packages)):
        lacking.append(too_new)
    return "; ".join(lacking)


def _is_there(package: str) -> bool:
    try:
        found = find_spec(package)
    except ModuleNotFoundError:  # of the package around it
        return False
    return found is not None and found.origin is not None  # an empty folder has no origin


def runtime_packages() -> list[str]:
    """Distributions that engines need in a server, by name: of any backend, own or registered."""
    entries = (*_OWN.values(), *REGISTERED.values())  # one may be registered anew, as a subclass
    return sorted({name for entry in entries for name in entry.runtime})


def check_installed(name: str) -> None:
    """Raise OptionError unless the backend is known, and its GPU and packages are there."""
    if name not in REGISTERED:
        raise OptionError(f"unknown backend {name!r}: use auto, {', '.join(REGISTERED)}")
    if lacking := what_lacks(name):
        raise OptionError(
            f"backend {name} cannot run here: {lacking}; `enginegate doctor` says more"
        )


def check_runnable(name: str) -> None:
    """Raise OptionError unless a run can use the backend, and the reference beside it."""
    check_installed(name)
    check_installed(REFERENCE)


def offered(name: str, precisions: Sequence[Precision]) -> tuple[Precision, ...]:
    """The precisions to build: all that the backend offers where every one is asked for.

    Raises OptionError for a precision that was asked for by name and is not offered.
    """
    offers = get_backend(name).offers
    if set(precisions) == set(Precision):
        return tuple(p for p in precisions if p in offers or p is Precision.BEST)
    if refused := [p for p in precisions if p not in offers and p is not Precision.BEST]:
        raise OptionError(
            f"backend {name} does not build {', '.join(refused)}: it offers {', '.join(offers)}"
        )
    return tuple(precisions)


def get_backend(name: str) -> Backend:
    """The backend of that name, its module imported. Raises OptionError if it is not installed."""
    check_installed(name)
    module, _, attribute = REGISTERED[name].target.partition(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # a library that is found and cannot be loaded, for any reason
        raise OptionError(f"backend {name} is installed and cannot be loaded: {error}") from error
    return backend
