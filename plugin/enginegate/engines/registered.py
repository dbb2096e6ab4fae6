"""Which backends there are: where each is, and what it needs. Nothing of them is imported."""

from dataclasses import dataclass


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
        "enginegate.engines.tensorrt:TensorRt",
        ("tensorrt", "pycuda", "onnxruntime"),
        _GPU,
        gpu=True,
    ),
}
