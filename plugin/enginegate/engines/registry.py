"""Backends by name: registered, resolved, checked, loaded."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from enginegate.engines.api import Backend
from enginegate.errors import OptionError
from enginegate.machine import find_gpus, installed_version
from enginegate.variants import Precision


@dataclass(frozen=True)
class Registration:
    """Where a backend's class is, which packages it needs, and how to install them.

    `gpu`: whether it needs an NVIDIA GPU. `distributions`: where a package of the same name comes
    from several, the one that it must come from.
    """

    target: str
    packages: tuple[str, ...]
    install: str
    gpu: bool = False
    distributions: tuple[str, ...] = ()


_CPU = "pip install 'pytest-enginegate[cpu]'"
_GPU = "pip install 'pytest-enginegate[gpu]' in an environment without the extra cpu"
REGISTERED: dict[str, Registration] = {
    "openvino": Registration(
        "enginegate.engines.openvino:OpenVino", ("openvino", "nncf", "onnxruntime"), _CPU
    ),
    "onnxruntime": Registration(
        "enginegate.engines.onnxruntime:OnnxRuntime", ("onnxruntime",), _CPU
    ),
    "onnxruntime-cuda": Registration(
        "enginegate.engines.onnxruntime_gpu:OnnxRuntimeCuda",
        ("onnxruntime",),
        _GPU,
        gpu=True,
        distributions=("onnxruntime-gpu",),
    ),
    "onnxruntime-tensorrt": Registration(
        "enginegate.engines.onnxruntime_gpu:OnnxRuntimeTensorRt",
        ("onnxruntime", "tensorrt"),
        _GPU,
        gpu=True,
        distributions=("onnxruntime-gpu",),
    ),
    "tensorrt": Registration(
        "enginegate.engines.tensorrt.backend:TensorRt",
        ("tensorrt", "pycuda", "onnxruntime"),
        _GPU,
        gpu=True,
    ),
}


def register(name: str, target: str) -> None:
    """Add a backend from a conftest.py: `target` is `module:Class` with a Backend class."""
    REGISTERED[name] = Registration(target, (), "")


def target_of(name: str) -> str:
    """`module:Class` of a registered backend."""
    return REGISTERED[name].target


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
    """What a known backend lacks on this machine, GPU first; empty if it can run."""
    entry = REGISTERED[name]
    lacking = [] if not entry.gpu or find_gpus().gpus else [find_gpus().reason]
    missing = [package for package in entry.packages if find_spec(package) is None]
    missing += [name for name in entry.distributions if installed_version(name) is None]
    if missing:
        lacking.append(f"{', '.join(missing)} not installed: {entry.install}")
    return "; ".join(lacking)


def needs_gpu(name: str) -> bool:
    """Whether a registered backend runs on an NVIDIA GPU."""
    return REGISTERED[name].gpu


def check_installed(name: str) -> None:
    """Raise OptionError unless the backend is known, and its GPU and packages are there."""
    if name not in REGISTERED:
        raise OptionError(f"unknown backend {name!r}: use auto, {', '.join(REGISTERED)}")
    if lacking := what_lacks(name):
        raise OptionError(
            f"backend {name} cannot run here: {lacking}; `enginegate doctor` says more"
        )


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
    except (ImportError, OSError) as error:  # a library that is found and cannot be loaded
        raise OptionError(f"backend {name} is installed and cannot be loaded: {error}") from error
    return backend
