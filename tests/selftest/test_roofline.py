"""The roofline on paper, profiles of devices, and measured ceilings."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from enginegate.cache import Store
from enginegate.cli import main
from enginegate.diagnostics.roofline.ceilings import cache_sizes, measured_device
from enginegate.diagnostics.roofline.device import Device, Memory, read_profile
from enginegate.diagnostics.roofline.flops import BACKBONE, HEAD, Cost, Layer, cost_of
from enginegate.diagnostics.roofline.polynomial import Polynomial
from enginegate.diagnostics.roofline.roofline import Roofline, Setting, Traffic, engine_as_json
from enginegate.errors import EngineError, OptionError
from enginegate.report.wording.roofline import roofline_line
from enginegate.variants import Precision

DEVICES = Path(__file__).parents[2] / "docs" / "devices"
PROFILE: dict[str, Any] = {
    "name": "made up",
    "source": "nowhere",
    "peaks_per_s": {"fp32": 1e12},
    "memory": [
        {"name": "cache", "capacity_bytes": 1e6, "bytes_per_s": 1e12},
        {"name": "memory", "bytes_per_s": 1e11},
    ],
}


def product(rows_of_seq=1, inner=1000, outer=1000, name="layer.0.line", part=BACKBONE):
    """A product of [batch * rows, inner] x [inner, outer]."""
    flops = Polynomial({(1, 0): Fraction(2 * inner * outer * rows_of_seq)})
    moved = Polynomial({(1, 0): Fraction((inner + outer) * rows_of_seq)})
    nothing = Polynomial()
    weights = inner * outer
    kinds = ("MatMul",)
    counts = (flops, nothing, nothing, moved, moved)
    return Layer(name, name.rpartition(".")[0], part, kinds, weights, weights, *counts)


def device(ridge=20.0):
    """With a ridge for what no cache holds; 100 GB/s."""
    levels = (Memory("cache", 1e6, 1e12), Memory("memory", math.inf, 1e11))
    return Device("made up", "nowhere", {"fp32": ridge * 1e11}, levels)


def roofline(layers, ridge=20.0, traffic=Traffic.WEIGHTS):
    return Roofline(Cost(tuple(layers), ()), Setting(device(ridge), "fp32", 4, traffic, 16))


def test_the_batch_up_to_which_memory_is_the_limit_is_that_of_the_formula():
    """Weights alone: 2 N / 4 bytes < ridge up to N = 2 ridge - 1."""
    found = roofline([product()])
    assert str(found.bound(found.cost.layers)) == "memory-bound up to batch 39"
    assert found.intensity(found.cost.layers, 39) < 20 <= found.intensity(found.cost.layers, 40)


def test_never_and_always():
    low, high = roofline([product()], ridge=0.4), roofline([product()], 300, Traffic.FUSED)
    assert str(low.bound(low.cost.layers)) == "never memory-bound"
    assert str(high.bound(high.cost.layers)) == "always memory-bound"  # at most 250 FLOP/byte


def test_the_floor_is_the_sum_over_layers_each_at_its_own_limit():
    bound, free = product(), product(rows_of_seq=1000)
    found = roofline([bound, free])
    traffic_s = 4e6 / 1e11
    work_s = 2 * 1000**3 / 2e12
    assert found.floor_s(1) == pytest.approx(traffic_s + work_s)
    assert found.memory.name == "memory"


def test_weights_that_a_cache_holds_are_read_from_it():
    found = roofline([product(inner=100, outer=100)])
    assert found.memory.name == "cache"
    assert found.ridge == pytest.approx(2.0)


def test_faster_than_the_limit_is_a_wrong_ceiling_and_no_triumph():
    found = roofline([product()])
    floor_s = found.floor_s(8)
    honest = engine_as_json("fp32", found, {8: 2 * floor_s})
    wrong = engine_as_json("fp32", found, {8: 0.8 * floor_s})
    assert not honest["warnings"]
    assert honest["points"][3]["efficiency"] == pytest.approx(0.5)
    (warning,) = wrong["warnings"]
    assert warning.startswith("batch 8 is 1.25 x as fast as the limit: that cannot be, a ceiling")
    assert roofline_line("fp32", found, {8: 0.8 * floor_s}).endswith(
        "; beyond the limit at batch 8, so a ceiling is wrong"
    )


def test_the_line_of_an_engine():
    found = roofline([product()])
    line = roofline_line("tiny int8", found, {8: found.floor_s(8) / 0.61})
    assert line == (
        "tiny int8: roofline: backbone memory-bound up to batch 39; 61 % of the limit at batch 8"
    )


def write(tmp_path, **changes):
    path = tmp_path / "device.json"
    path.write_text(json.dumps({**PROFILE, **changes}))
    return path


def test_a_profile_is_read(tmp_path):
    found = read_profile(write(tmp_path))
    assert found.holding(2e6).name == "memory"
    assert found.as_json()["memory"][1]["capacity_bytes"] is None
    for path in DEVICES.glob("*.toml"):
        assert read_profile(path).peaks_per_s


LAST = {"name": "memory", "bytes_per_s": 1e11}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"peak": 1}, r"\$: Additional properties .*'peak'"),
    "a negative peak": ({"peaks_per_s": {"fp32": -1}}, r"\$\.peaks_per_s\.fp32: -1 is less than"),
    "a peak in words": ({"peaks_per_s": {"fp32": "1e12"}}, r"fp32: '1e12' is not of type"),
    "an unknown precision": ({"peaks_per_s": {"fp64": 1e12}}, r"'fp64' is not one of .*fp32"),
    "no peak": ({"peaks_per_s": {}}, r"\$\.peaks_per_s: {} should be non-empty"),
    "no memory": ({"memory": []}, r"\$\.memory: \[\] should be non-empty"),
    "no bandwidth": ({"memory": [{"name": "memory"}]}, r"\[0\]: 'bytes_per_s' is a required"),
    "a bandwidth of 0": (
        {"memory": [{**LAST, "bytes_per_s": 0}]},
        r"memory\[0\]\.bytes_per_s: 0 is less",
    ),
    "a last level that ends": (
        {"memory": [{**LAST, "capacity_bytes": 1e9}]},
        r"the last has no capacity_bytes",
    ),
    "levels in no order": ({"memory": [LAST, PROFILE["memory"][0]]}, r"go from small to large"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_profile_is_an_error_that_says_what(fault, tmp_path):
    changes, message = WRONG[fault]
    with pytest.raises(OptionError, match=message):
        read_profile(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("a.toml", "nan", "nan is no finite number"),
        ("a.json", "1e999", "the number 1e999 is too large"),
        ("b.toml", "true", "True is not of type 'number'"),
    ],
)
def test_a_rate_that_is_no_number_is_refused(tmp_path, name, rate, message):
    path = write(tmp_path)
    text = path.read_text().replace(str(PROFILE["peaks_per_s"]["fp32"]), "RATE", 1)
    if name.endswith("toml"):
        text = 'name = "a"\nsource = "b"\npeaks_per_s = {fp32 = RATE}\n'
        text += 'memory = [{name = "m", bytes_per_s = 1e9}]\n'
    (tmp_path / name).write_text(text.replace("RATE", rate))
    with pytest.raises(OptionError, match=message):
        read_profile(tmp_path / name)


def test_a_profile_that_cannot_be_read_is_an_error(tmp_path):
    for name, text in {
        "a.toml": "name =",
        "b.toml": "x = nan",
        "c.toml": f"x = {'[' * 200_000}",
        "a.json": "{",
        "b.json": "[1]",
        "c.json": "NaN",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(OptionError, match=name):
            read_profile(tmp_path / name)
    with pytest.raises(OptionError, match=r"cannot read the device profile .*none\.json"):
        read_profile(tmp_path / "none.json")


def test_a_precision_that_the_profile_lacks_is_an_error(tmp_path, tiny_onnx, capsys):
    profile = write(tmp_path)
    given = ["roofline", str(tiny_onnx), "--device-profile", str(profile), "--precision"]
    assert main([*given, "int8"]) == 1
    assert "has no peak for int8, only for fp32: add it" in capsys.readouterr().err
    assert main([*given, "int9"]) == 1
    assert "--precision ['int9'] is none of" in capsys.readouterr().err


def test_the_command_prints_a_model_on_a_device(tmp_path, tiny_onnx, capsys):
    given = ["roofline", str(tiny_onnx), "--device-profile", str(write(tmp_path))]
    assert main([*given, "--seq-len", "8", "--batches", "1,16"]) == 0
    printed = capsys.readouterr().out
    assert "tiny.onnx: FLOPs of a text of 8 tokens: " in printed
    assert "made up: fp32 1000 GFLOP/s; cache 1000, memory 100 GB/s (nowhere)" in printed
    assert "memory-bound up to batch 2 " in printed  # the head; the ridge of the cache is 1
    assert main([*given, "--batches", "1,x"]) == 1
    assert main([*given, "--seq-len", "0"]) == 1


@pytest.mark.parametrize("profile", sorted(DEVICES.iterdir()), ids=lambda path: path.name)
def test_every_shipped_profile_tells_a_models_limits(profile, tiny_onnx, capsys):
    device = read_profile(profile)
    given = ["roofline", str(tiny_onnx), "--device-profile", str(profile), "--precision"]
    assert main([*given, ",".join(device.peaks_per_s)]) == 0
    assert f"{device.name}: fp32 " in capsys.readouterr().out
    assert device.peaks_per_s["fp32"] < device.peaks_per_s["fp16"] < device.peaks_per_s["int8"]


@pytest.mark.slow
def test_the_limits_of_the_reference_report_arise_under_stated_assumptions(shipped_distilbert):
    """True FLOPs in fp32 on an RTX 3080: the backbone unfused, the head by its weights alone."""
    cost = cost_of(shipped_distilbert.onnx, shipped_distilbert.output)
    rtx = read_profile(DEVICES / "rtx-3080-10gb.toml")
    settings = {t: Roofline(cost, Setting(rtx, "fp32", 4, t, 16)) for t in Traffic}
    assert settings[Traffic.UNFUSED].bound(cost.of(BACKBONE)).up_to == 11
    assert settings[Traffic.WEIGHTS].bound(cost.of(HEAD)).up_to == 78


def test_the_caches_are_those_the_system_states(tmp_path):
    stated = {"0": ("1", "Data", "32K"), "1": ("1", "Instruction", "32K")}
    stated |= {"2": ("2", "Unified", "1024K"), "3": ("3", "Unified", "32M")}
    for index, values in stated.items():
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size"), values, strict=True):
            (folder / name).write_text(value + "\n")
    assert cache_sizes(tmp_path) == {"L2": 1 << 20, "L3": 32 << 20}
    assert cache_sizes(tmp_path / "none") == {}


@pytest.fixture
def quick(monkeypatch):
    """Ceilings in a moment; their figures are worth nothing."""
    monkeypatch.setattr("enginegate.diagnostics.roofline.ceilings._MEASURE_S", 0.01)
    monkeypatch.setattr("enginegate.diagnostics.roofline.ceilings._WIDTH", 64)
    monkeypatch.setattr("enginegate.diagnostics.roofline.ceilings._ROWS", (4,))
    monkeypatch.setattr("enginegate.diagnostics.roofline.ceilings._LARGEST", 1 << 20)


def test_ceilings_are_measured_once_per_machine_and_threads(tmp_path, quick):
    engines = {"fp32": ("onnxruntime", Precision.FP32)}
    first = measured_device(Store(tmp_path), engines, 1)
    assert measured_device(Store(tmp_path), engines, 1) == first
    assert measured_device(Store(tmp_path), engines, 2).name != first.name
    assert first.peaks_per_s["fp32"] > 0
    assert first.memory[-1].capacity_bytes == math.inf


def test_a_run_with_roofline_says_the_limit_and_flags_a_wrong_ceiling(project, quick, monkeypatch):
    """The planted ceiling is a millionth of any machine's."""
    report = project.path / "report.json"
    honest = project.judge("--gate-roofline", "--gate-report-json", str(report))
    honest.stdout.fnmatch_lines(
        ["roofline: *GFLOP/s; *GB/s (measured*", "tiny fp32: roofline: *% of the limit at batch 4"]
    )
    engine = json.loads(report.read_text())["rooflines"]["tiny"]["engines"][0]
    assert [p["batch"] for p in engine["points"] if p["measured_s"]] == [1, 4]
    monkeypatch.setattr("enginegate.session.costs.measured_device", lambda *_given: device(1e-9))
    wrong = project.judge("--gate-roofline")
    wrong.stdout.fnmatch_lines(["tiny fp32: batch 1 is * x as fast as the limit: that cannot be*"])


def test_a_gpu_is_not_given_the_memory_of_this_machine(tmp_path):
    with pytest.raises(EngineError, match=r"GPU are not measured \(tensorrt\): state them"):
        measured_device(Store(tmp_path), {"fp16": ("tensorrt", Precision.FP16)}, 1)


def test_a_run_without_roofline_measures_no_ceiling(project, monkeypatch):
    def refuse(*_given):
        raise AssertionError("measured")

    monkeypatch.setattr("enginegate.session.costs.measured_device", refuse)
    report = project.path / "report.json"
    assert project.judge("--gate-report-json", str(report)).ret == 0
    assert json.loads(report.read_text())["rooflines"] == {}
