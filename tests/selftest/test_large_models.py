"""A model whose weights lie beside its graph is never in memory whole where it need not be."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from enginegate.engines.quantize import round_to, to_bf16, to_fp16
from enginegate.models import beside, read_graph_of, values_of
from enginegate.variants import Precision

PEAK = Path("/proc/self/clear_refs")  # forgets how much memory was used at most
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


@pytest.mark.skipif(not os.access(PEAK, os.W_OK), reason="the system tells no peak of memory")
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_large_model_is_converted_without_a_copy_of_it_in_memory(
    monkeypatch, many_weights, tmp_path, precision
):
    monkeypatch.setattr("enginegate.models.onnx_file.LIMIT_BYTES", 40_000)
    to_half = {Precision.FP16: to_fp16, Precision.BF16: to_bf16}[precision]
    for convert in (functools.partial(round_to, precision), to_half):
        target = tmp_path / "engine.onnx"
        convert(many_weights, target)  # once, so that all is loaded
        PEAK.write_text("5")
        before = most_memory("VmRSS")
        convert(many_weights, target)
        assert most_memory("VmHWM") - before < 0.6 * SIZE_BYTES
        assert [path.name for path in beside(target)] == ["engine.onnx.data"]


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
