"""A model whose weights lie beside its graph is never in memory whole where it need not be."""

import ctypes
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_static

from enginegate.engines.onnxruntime import run_onnx
from enginegate.engines.quantize import quantize_qdq, round_to, to_fp16
from enginegate.models import beside, is_large_file, onnx_file, read_graph_of, values_of
from enginegate.variants import Precision

PEAK = Path("/proc/self/clear_refs")  # forgets how much memory was used at most
M_MMAP_THRESHOLD = -3  # of malloc.h
NARROW, WIDE = 256, 4096
SIZE_BYTES = 16 * 4 * NARROW * WIDE


def most_memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:"))


@pytest.fixture
def many_weights(tmp_path):
    """A file of 16 multiplications, 4 MB of weights each, that lie beside it."""
    names = [f"w{number}" for number in range(16)]
    shapes = [(NARROW, WIDE), (WIDE, NARROW)] * 8
    given = zip(names, shapes, strict=True)
    weights = [numpy_helper.from_array(np.full(s, 1e-3, np.float32), n) for n, s in given]
    values = ["x", *(f"y{number}" for number in range(16))]
    nodes = [helper.make_node("MatMul", [values[i], names[i]], [values[i + 1]]) for i in range(16)]
    ends = [helper.make_tensor_value_info(n, 1, ["rows", NARROW]) for n in ("x", "y15")]
    graph = helper.make_graph(nodes, "many", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, tmp_path / "many.onnx", save_as_external_data=True, location="many.onnx.data")
    return tmp_path / "many.onnx"


TELLS_PEAK = pytest.mark.skipif(
    not os.access(PEAK, os.W_OK), reason="the system tells no peak of memory"
)


def most_taken(way, source, target):
    """The most memory that a conversion takes, in sizes of the model.

    In a process of its own: in one that did other work, memory of before is taken again.
    """
    script = "import sys, test_large_models as t; print(t.taken_here(*sys.argv[1:]))"
    command = [sys.executable, "-c", script, way, str(source), str(target)]
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    variables = {**os.environ, "PYTHONPATH": paths}
    found = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def taken_here(way, source, target):
    onnx_file.LIMIT_BYTES = 40_000
    convert = functools.partial(WAYS[way], Path(source), Path(target))
    # each weight is given back when it is freed; else the next takes its place and does not count
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1_000_000)
    convert()  # once, so that all is loaded
    gc.collect()  # else what the first left is freed, and taken again, in the second
    PEAK.write_text("5")
    before = most_memory("VmRSS")
    convert()
    return (most_memory("VmHWM") - before) / SIZE_BYTES


@TELLS_PEAK
@pytest.mark.parametrize("way", ["rounded", "converted"])
def test_a_large_model_is_converted_without_a_copy_of_it_in_memory(way, many_weights, tmp_path):
    target = tmp_path / "engine.onnx"
    assert most_taken(way, many_weights, target) < 0.6
    assert [path.name for path in beside(target)] == ["engine.onnx.data"]


CALIBRATION: dict[str, Any] = {
    "x": np.linspace(-2, 3, 16 * NARROW, dtype=np.float32).reshape(16, NARROW)
}


@TELLS_PEAK
def test_a_large_model_is_quantised_without_a_third_copy_of_it(many_weights, tmp_path):
    assert most_taken("quantised", many_weights, tmp_path / "q.onnx") < 1.8  # measured: 1.4
    assert most_taken("at once", many_weights, tmp_path / "q.onnx") > 1.8  # measured: 2.2


@pytest.mark.parametrize("limit_bytes", [40_000, 2 * SIZE_BYTES], ids=["beside", "inside"])
def test_the_quantised_file_is_that_of_quantize_static(
    monkeypatch, many_weights, tmp_path, limit_bytes
):
    monkeypatch.setattr("enginegate.models.onnx_file.LIMIT_BYTES", limit_bytes)
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    for folder, quantise in zip(folders, (quantize_qdq, at_once), strict=True):
        folder.mkdir()
        quantise(many_weights, folder / "q.onnx", CALIBRATION)
    ours, theirs = ({path.name: path.read_bytes() for path in f.iterdir()} for f in folders)
    assert sorted(ours) == ["q.onnx", "q.onnx.data"][: 1 + (limit_bytes < SIZE_BYTES)]
    assert ours == theirs


def test_a_file_of_before_qdq_is_quantised(tmp_path):
    ends = [helper.make_tensor_value_info(n, 1, ["rows", NARROW]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(np.eye(NARROW, dtype=np.float32), "w")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "old", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 9)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=4), tmp_path / "old.onnx")
    quantize_qdq(tmp_path / "old.onnx", tmp_path / "q.onnx", CALIBRATION)
    found = run_onnx(tmp_path / "q.onnx", CALIBRATION)
    assert np.abs(found - CALIBRATION["x"]).max() < 3 / 127  # one step


def at_once(source, target, calibration):
    """Quantise as ONNX Runtime offers it."""
    parts = iter([{"x": rows} for rows in np.split(calibration["x"], 2)])
    quantize_static(
        source,
        target,
        SimpleNamespace(get_next=lambda: next(parts, None)),
        op_types_to_quantize=["MatMul", "Gemm"],
        use_external_data_format=is_large_file(source),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
        },
    )


def test_only_large_floats_stay_beside_a_graph_that_is_read(tmp_path):
    floats = np.arange(2000, dtype=np.float32)
    numbers: dict[str, Any] = {"floats": floats, "whole": np.arange(2000)}
    weights = [numpy_helper.from_array(values, name) for name, values in numbers.items()]
    branch = helper.make_graph([], "branch", [], [], [numpy_helper.from_array(floats)])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node], "some", [], [], weights))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w")
    found = read_graph_of(tmp_path / "m.onnx")
    outside, whole = found.graph.initializer
    inner = found.graph.node[0].attribute[0].g.initializer[0]
    assert [bool(t.raw_data) for t in (outside, whole, inner)] == [False, True, True]
    assert np.array_equal(values_of(outside, tmp_path), floats)


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "rounded": functools.partial(round_to, Precision.BF16),
    "converted": to_fp16,
    "quantised": lambda source, target: quantize_qdq(source, target, CALIBRATION),
    "at once": lambda source, target: at_once(source, target, CALIBRATION),
}
