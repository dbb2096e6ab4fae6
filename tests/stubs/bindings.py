"""Signatures of TensorRT's real Python bindings, without its libraries and without a GPU.

The wheels on PyPI hold the bindings alone. They import once the three libraries that they are
linked to are found; three of nine functions that answer nothing will do, because no signature
needs them. pybind11-stubgen then writes what the bindings say of themselves. Nothing of it is
committed.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

VERSIONS = ("10.16.1.11", "11.4.0.106")
_WHEEL = "tensorrt_cu13_bindings"
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_NOT_PYTHON = {  # mended: arguments called `in` or without default, and a variable called `bool`
    r"(\(.*?)\bin: ": r"\1in_: ",
    r"(?<=-> )bool\b|(?<=[a-z_0-9]: )bool\b": "builtins.bool",
    r"class IHostMemory:\n": (  # its docstring says that it has the buffer protocol
        "class IHostMemory:\n    def __buffer__(self, flags: int, /) -> memoryview: ...\n"
    ),
    r"(power: Weights = None, channel_axis: [\w.]+)\)": r"\1 = ...)",
}
_SHIM = """
void *createInferBuilder_INTERNAL(void) { return 0; }
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createInferRuntime_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *getBuilderPluginRegistry(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 0; }
"""


def write_stubs(version: str, folder: Path) -> Path:
    """Stubs of the package `tensorrt` in a version; the folder to put on MYPYPATH."""
    _unpack(version, folder / "wheel")
    _build_shims(version.partition(".")[0], folder / "lib")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder / "lib"),
        "PYTHONPATH": str(folder / "wheel"),
    }
    stubgen = [sys.executable, "-m", "pybind11_stubgen", "--ignore-all-errors"]
    _run([*stubgen, "-o", str(folder / "raw"), "tensorrt_bindings"], environment)
    return _renamed(folder / "raw" / "tensorrt_bindings", folder / "stubs")


def _unpack(version: str, folder: Path) -> None:
    """Pip's own download, so that its index and its cache are used."""
    _run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--dest", str(folder), f"{_WHEEL}=={version}"),
        ],
        dict(os.environ),
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)


def _build_shims(major: str, folder: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("no C compiler: install gcc to check against TensorRT's bindings")
    folder.mkdir(parents=True)
    source = folder / "shim.c"
    source.write_text(_SHIM)
    for name in _LIBRARIES:
        library = folder / f"lib{name}.so.{major}"
        _run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], dict(os.environ))


def _renamed(raw: Path, folder: Path) -> Path:
    """The bindings are the module `tensorrt_bindings`; users import them as `tensorrt`."""
    package = folder / "tensorrt"
    package.mkdir(parents=True)
    for path in raw.glob("*.pyi"):
        text = path.read_text(encoding="utf-8").replace("tensorrt_bindings", "tensorrt")
        for wrong, right in _NOT_PYTHON.items():
            text = re.sub(wrong, right, text)
        text = text.replace("import typing\n", "import builtins\nimport typing\n", 1)
        (package / path.name).write_text(text, encoding="utf-8")
    return folder


def _run(command: list[str], environment: dict[str, str]) -> None:
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{found.stdout}{found.stderr}")
