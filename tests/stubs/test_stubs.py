"""The TensorRT code against the signatures of both majors: `tox run -e stubs`."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .bindings import VERSIONS, write_stubs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGIN = ROOT / "plugin"
FAKE = ROOT / "tests" / "selftest" / "fake_gpu" / "tensorrt.py"
REMOVED = {
    "trt.BuilderFlag.FP16": "FP16",
    "trt.BuilderFlag.INT8": "INT8",
    "trt.IInt8EntropyCalibrator2": "IInt8EntropyCalibrator2",
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "EXPLICIT_BATCH",
}
WRONG = {
    "context.execute_async_v2([], 0)": "execute_async_v2",
    "context.set_binding_shape(0, (1, 8))": "set_binding_shape",
    "engine.get_binding_name(0)": "get_binding_name",
    "builder.build_engine(network, config)": "build_engine",
    "context.set_tensor_address('x')": "set_tensor_address",
    "config.set_timing_cache(b'', False)": "set_timing_cache",
    "context.set_input_shape('x')": "set_input_shape",
}
PREAMBLE = """
import tensorrt as trt
def use(context: trt.IExecutionContext, engine: trt.ICudaEngine, builder: trt.Builder,
        network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
"""


@pytest.fixture(scope="module", params=VERSIONS)
def stubs(request, tmp_path_factory):
    return request.param, write_stubs(request.param, tmp_path_factory.mktemp("stubs"))


def mypy(stubs, *files):
    command = [sys.executable, "-m", "mypy", "--config-file", str(HERE / "mypy.ini"), *files]
    path = os.pathsep.join([str(stubs), str(PLUGIN)])
    environment = {**os.environ, "MYPYPATH": path}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=stubs
    )


def test_our_code_fits_the_real_signatures(stubs):
    files = [*PLUGIN.glob("enginegate/engines/tensorrt/*.py")]
    found = mypy(stubs[1], *map(str, files))
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"no issues found in {len(files)} source files" in found.stdout


def test_removed_names_and_wrong_calls_are_rejected(stubs, tmp_path):
    version, folder = stubs
    gone = REMOVED if version.startswith("11") else {}
    lines = [*gone, *WRONG]
    source = tmp_path / "misuse.py"
    source.write_text(PREAMBLE + "".join(f"    {line}\n" for line in lines))
    found = mypy(folder, str(source)).stdout.splitlines()
    for number, (line, name) in enumerate({**gone, **WRONG}.items(), PREAMBLE.count("\n") + 1):
        said = [text for text in found if f"misuse.py:{number}: error" in text]
        assert any(name in text for text in said), (line, found)


def signatures(source):
    """Arguments of every public method and property, all overloads, by class."""
    found: dict[str, dict[str, list[list[str]]]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for method in (n for n in node.body if isinstance(n, ast.FunctionDef)):
                named = found.setdefault(node.name, {}).setdefault(method.name, [])
                named.append([a.arg for a in method.args.args if a.arg != "self"])
    return found


def test_the_fake_has_only_real_methods_with_real_arguments(stubs):
    real = signatures((stubs[1] / "tensorrt" / "tensorrt.pyi").read_text())
    fake = signatures(FAKE.read_text())
    compared = [
        (name, method, arguments)
        for name, methods in fake.items()
        for method, (arguments,) in methods.items()
        if not name.startswith("_") and not method.startswith("_")
    ]
    assert len(compared) > 35
    wrong = [found for found in compared if found[2] not in real[found[0]].get(found[1], [])]
    assert wrong == []
