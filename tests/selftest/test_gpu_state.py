"""Clocks, throttling and phases of a GPU: what is read, and what it does to a run."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from enginegate.engines.api import Phases
from enginegate.engines.measure import GpuTimes, median_phases
from enginegate.machine.condition import Condition, describe_machine, disturbance
from enginegate.machine.nvml import disturbance_of, read_state
from enginegate.report.table import gpu_lines
from enginegate.variants import Precision, Variant


def test_the_state_is_that_of_cudas_device(fake_gpu):
    state = read_state()
    assert state
    assert (state.sm_mhz, state.max_sm_mhz, state.temperature_c) == (1755, 1980, 61)
    assert (state.power_w, state.power_limit_w, state.throttling) == (312.5, 700.0, ())
    assert describe_machine()["gpu"]["memory_mhz"] == 2619


@pytest.mark.parametrize("fails", ["nvml", "no GPU"])
def test_an_unknown_state_is_none(fake_gpu, fails):
    fake_gpu.fails = {fails}
    fake_gpu.gpus = 0 if fails == "no GPU" else 1
    assert read_state() is None
    assert disturbance_of(None, read_state()) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"throttling": 0x01}, ""),  # idle
        ({"throttling": 0x04}, "GPU power cap"),
        ({"throttling": 0x48}, "GPU hardware slowdown, GPU thermal slowdown by hardware"),
        ({"throttling": 0x20}, "GPU thermal slowdown by software"),
        ({"sm_mhz": 1410}, "GPU clock drifted"),
        ({"sm_mhz": 1740}, ""),
    ],
)
def test_throttling_and_drift_disturb_a_block(fake_gpu, change, said):
    before = Condition.now(gpu=True)
    vars(fake_gpu).update(change)
    after = Condition.now(gpu=True)
    assert disturbance(before, after, own=False).removeprefix("steal").lstrip(", ") == said
    elsewhere = (Condition.now(), Condition.now())
    assert "GPU" not in disturbance(*elsewhere, own=False)


def test_a_throttled_run_is_marked(gpu_project, fake_gpu):
    fake_gpu.throttling = 0x40
    result = gpu_project.run(
        "--precision=fp16", "--gate-report-json=report.json", "--gate-report-text=r.txt"
    )
    result.stdout.fnmatch_lines(
        ["fp16: * of * blocks disturbed: GPU thermal slowdown by hardware*"]
    )
    report = json.loads((gpu_project.path / "report.json").read_text())
    assert report["condition"]["gpu_after"]["throttling"] == ["thermal slowdown by hardware"]
    gpu = report["results"][0]["gpu"]
    assert gpu["mode"].startswith("transfers in, CUDA graph off")
    assert set(gpu["phases"]) == {"1", "4"}
    assert "GPU: transfers in" in (gpu_project.path / "r.txt").read_text()


def test_engines_on_the_processor_have_no_phases(project):
    project.judge("--gate-report-json=report.json")
    report = json.loads((project.path / "report.json").read_text())
    assert report["results"][0]["gpu"] is None
    assert report["condition"]["gpu"] is None


def test_phases_are_medians_and_shown_in_milliseconds():
    calls = [Phases(x * 1e-3, x * 2e-3, x * 3e-3, x * 4e-3) for x in (1, 2, 9)]
    times = GpuTimes("graph off", {8: median_phases(calls)})
    variant = Variant("tiny", "tensorrt", Precision.FP16)
    result: Any = SimpleNamespace(gpu=times, variant=variant)
    assert list(gpu_lines(result))[1] == (
        "  batch 8: host to device 2.00 ms, compute 4.00 ms, device to host 6.00 ms, "
        "enqueue 8.00 ms; bound by enqueue: the GPU waits for the host"
    )


@pytest.mark.parametrize(("enqueue_s", "bound"), [(0.79, False), (0.81, True)])
def test_a_gpu_waits_for_the_host_above_four_fifths_of_its_own_time(enqueue_s, bound):
    assert Phases(9, 1, 9, enqueue_s).waits_for_host == bound
