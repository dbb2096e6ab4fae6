"""The numbers inside a model: what fp16 cannot hold is named, what it need not hold is not."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from enginegate.accuracy import with_ranges
from enginegate.accuracy.judge import Accuracy
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.cache import Store
from enginegate.engines import Ranges, find_ranges
from enginegate.engines.probing import measured_ranges
from enginegate.engines.ranges import OutOfRange, judged_ranges
from enginegate.errors import EngineError
from enginegate.models import Exported, Kind, ModelSpec, read_layers
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

GRAPH = """<ir_version: 9, opset_import: ["" : 17]>
one (float[rows, 4] x) => (float[rows, 4] y)
<float[4, 4] w, float[4] b, float two = {2.0}, float lowest = {-3.4e38}>
{
    product = MatMul(x, w)
    biased = Add(product, b)
    square = Pow(biased, two)
    mean = ReduceMean<axes = [1], keepdims = 1>(square)
    root = Sqrt(mean)
    normed = Div(biased, root)
    masked = Add(normed, lowest)
    soft = Softmax(masked)
    again = MatMul(soft, w)
    y = Tanh(again)
}"""
BATCH: Any = {"x": np.eye(4, dtype=np.float32)}


def write(path, graph=GRAPH, *, weight=1.0, bias=0.0):
    model = onnx.parser.parse_model(graph)
    rng = np.random.default_rng(0)
    values = {"w": weight * rng.uniform(0.5, 1, (4, 4)), "b": np.full(4, bias)}
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, path)
    return path


def ranges(path, kept=()):
    return judged_ranges(measured_ranges(path, BATCH), read_layers(path), kept)


def test_a_clean_model_has_its_largest_number_and_no_fault(tmp_path):
    """Its mask of the lowest float goes into a softmax only."""
    found = ranges(write(tmp_path / "m.onnx"))
    assert found.fault == ""
    assert found.largest == pytest.approx(2, abs=1.5)


def test_squares_in_fp32_may_be_beyond_fp16(tmp_path):
    found = ranges(write(tmp_path / "m.onnx", bias=400))
    assert found.fault == ""
    assert 400 < found.largest < 402


def test_an_overflow_is_named_with_all_that_takes_it(tmp_path):
    found = ranges(write(tmp_path / "m.onnx", bias=70000))
    places = [(one.layer, one.kind, one.value) for one in found.beyond]
    assert places == [
        ("biased", "weight", "b"),
        ("biased", "Add", "biased"),
        ("root", "Sqrt", "root"),
    ]
    assert found.fault == (
        "fp16 cannot hold the model's numbers: overflow in biased (weight b): 70,000 > 65,504; "
        "and 2 more"
    )


def test_a_layer_that_is_kept_on_both_sides_need_not_hold_it(tmp_path):
    path = write(tmp_path / "m.onnx", bias=70000)
    assert ranges(path, {"biased"}).fault  # the division takes it in fp16
    assert ranges(path, {"biased", "normed"}).fault == ""
    assert ranges(path).keep == ("biased", "normed")
    assert ranges(path, ranges(path).keep).fault == ""


def test_what_takes_a_moved_value_is_kept_too(tmp_path):
    """Kept alone, a reshaping would hand on the value to a node in fp16."""
    moved = GRAPH.replace(
        "normed = Div(biased, root)", "m = Identity(biased)\n normed = Div(m, root)"
    )
    path = write(tmp_path / "m.onnx", moved, bias=70000)
    assert ranges(path, {"biased", "m", "root"}).fault
    assert {"biased", "m", "normed"} <= set(ranges(path).keep)
    assert ranges(path, ranges(path).keep).fault == ""


def test_a_value_that_vanishes_is_named(tmp_path):
    found = ranges(write(tmp_path / "m.onnx", weight=1e-9))
    (first, *_) = found.beyond
    assert (first.kind, first.value, first.lost_share) == ("weight", "w", 1)
    assert "underflow in product (weight w): 100% of the numbers are below 6.0e-08" in found.fault


def exported(path):
    roles = {"x": "ids"}
    spec = ModelSpec("one", Kind.ONNX, str(path), vocab_size=9, seq_len=4)
    return Exported(spec, path, path.name, "from m.onnx", None, roles, "y")


def test_it_is_measured_once(tmp_path, monkeypatch):
    model, store = exported(write(tmp_path / "m.onnx", bias=70000)), Store(tmp_path / "store")
    first = find_ranges(store, model, BATCH)
    monkeypatch.setattr("enginegate.engines.probing.measured_ranges", None)
    assert find_ranges(store, model, BATCH) == first
    assert not find_ranges(store, model, BATCH, {"biased", "normed"}).fault  # judged anew


def test_of_int8_beside_fp16_all_is_judged_but_what_multiplies(tmp_path):
    """A weight that int8 holds need not fit into fp16; what is added to its product must."""
    store, int8 = Store(tmp_path / "store"), Precision.INT8
    large = exported(write(tmp_path / "large.onnx", weight=1e5))
    kinds = [
        {(one.kind, one.value) for one in find_ranges(store, large, BATCH, (), p).beyond}
        for p in (Precision.FP16, int8)
    ]
    assert kinds[0] - kinds[1] == {("weight", "w")}
    biased = exported(write(tmp_path / "biased.onnx", bias=70000))
    assert ("overflow in biased (weight b)") in find_ranges(store, biased, BATCH, (), int8).fault
    clean = exported(write(tmp_path / "clean.onnx"))
    assert find_ranges(store, clean, BATCH, (), int8).fault == ""


@pytest.mark.parametrize(("gain", "ret"), [(1.0, 0), (1e5, 10)])
def test_int8_on_tensorrt_holds_the_rest_in_fp16(gpu_project, load_tiny, gain, ret):
    load_tiny.write_tiny_onnx(gpu_project.path / "tiny.onnx", head_gain=gain)
    result = gpu_project.run("--precision=int8", "-k", "embeddings")
    assert result.ret == ret
    said = "fp16 cannot hold the model's numbers: overflow in" in result.stdout.str()
    assert said == (ret != 0)


def test_what_has_no_fp16_is_not_judged_by_it(project, load_tiny):
    load_tiny.write_tiny_onnx(project.path / "tiny.onnx", head_gain=1e5)
    result = project.run("--precision=int8", "--gate-backend=onnxruntime", "-k", "embeddings")
    assert "cannot hold" not in result.stdout.str()


def test_what_cannot_be_measured_is_an_error_and_no_verdict(tmp_path):
    path = write(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Unheard", ["y"], ["z"], domain="elsewhere"))
    model.graph.output[0].name = "z"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(model, path)
    with pytest.raises(EngineError, match="numbers inside one cannot be measured"):
        find_ranges(Store(tmp_path / "store"), exported(path), BATCH)


def test_it_fails_whatever_the_embeddings_are():
    limits = DEFAULT_LIMITS[Precision.FP16]
    passed = Accuracy(None, limits, Judgement(Verdict.PASS, ("held",)))
    failed = Accuracy(None, limits, Judgement(Verdict.FAIL, ("NaN",)))
    beyond = Ranges(9, 7e4, "a", (OutOfRange("a", "Add", "v", 7e4, 0.0),))
    for ranges in (None, Ranges(9, 6e4, "a")):
        assert with_ranges(passed, ranges) == passed
    assert with_ranges(passed, beyond).faults == (beyond.fault,)
    assert with_ranges(failed, beyond).faults == (beyond.fault, "NaN")
