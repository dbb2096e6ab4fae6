"""Clocks, throttling and phases of a GPU: what is read, and what it does to a run."""

import contextlib
import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

from enginegate.engines.api import Phases
from enginegate.engines.measure import GpuTimes, median_phases
from enginegate.machine.condition import Condition, describe_machine, disturbance
from enginegate.machine.nvml import disturbance_of, power_limit, read_state
from enginegate.report.table import gpu_lines
from enginegate.speed.timing import CANDIDATE, CONTROL, SECOND_CONTROL, WARM_UP_S, Rig
from enginegate.variants import Precision, Variant


def test_the_state_is_that_of_cudas_device(fake_gpu):
    state = read_state()
    assert state
    assert (state.sm_mhz, state.max_sm_mhz, state.temperature_c) == (1755, 1980, 61)
    assert (state.power_w, state.power_limit_w, state.throttling) == (312.5, 700.0, ())
    assert describe_machine()["gpu"]["memory_mhz"] == 2619
    assert power_limit() == "700 W"


@pytest.mark.parametrize("fails", ["nvml", "no GPU"])
def test_an_unknown_state_is_none(fake_gpu, fails):
    fake_gpu.fails = {fails}
    fake_gpu.gpus = 0 if fails == "no GPU" else 1
    assert read_state() is None
    assert power_limit() == ""
    assert disturbance_of([None, read_state()]) == ()


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
    before, looks = Condition.now(), [read_state()]
    vars(fake_gpu).update(change)
    looks.append(read_state())
    found = disturbance(before, Condition.now(), own=False, gpu=looks)
    assert found == said
    assert "GPU" not in disturbance(before, Condition.now(), own=False)


class FakeArm:
    """Work on a GPU whose clock rises with it and falls without, or of a processor."""

    def __init__(self, state, clocks, log, name):
        self.state, self.clocks, self.log, self.name = state, clocks, log, name

    def run(self, batch, time_s):
        self.log.append((self.name, time_s))
        self.state.sm_mhz = self.clocks.pop(0) if len(self.clocks) > 1 else self.clocks[0]
        return (0.001,)


def rig_with(fake_gpu, clocks, log):
    """Candidate and control on the GPU, or with a control whose turns let the clock fall."""
    busy, idle = FakeArm(fake_gpu, clocks, log, "gpu"), FakeArm(fake_gpu, [210], log, "cpu")
    arms = {CANDIDATE: busy, CONTROL: idle, SECOND_CONTROL: idle}
    opened = lambda batches, rng: contextlib.nullcontext(arms)  # noqa: E731
    on_gpu = frozenset({CANDIDATE})
    return Rig(opened, 0.0, random.Random(1), watch_self=False, on_gpu=on_gpu)


def test_a_gpu_warms_up_until_its_clock_is_steady(fake_gpu):
    log: list[Any] = []
    fake_gpu.sm_mhz = 210
    rig_with(fake_gpu, [600, 1200, 1750, 1755], log).replicate([1])
    warmed = [name for name, time_s in log if time_s == WARM_UP_S]
    assert warmed == ["gpu"] * 4  # from idle to the second look that shows the same clock


def test_a_clock_that_falls_in_turns_of_the_processor_disturbs_nothing(fake_gpu):
    (block,) = rig_with(fake_gpu, [1755], []).replicate([1])[1].blocks
    assert "GPU" not in block.disturbance


def test_a_power_cap_in_turns_of_the_gpu_is_seen_whatever_ran_last(fake_gpu, monkeypatch):
    log: list[Any] = []
    rig = rig_with(fake_gpu, [1755], log)
    look = read_state

    def capped_after_work():
        fake_gpu.throttling = 0x04 if log and log[-1][0] == "gpu" else 0
        return look()

    monkeypatch.setattr("enginegate.speed.timing.read_state", capped_after_work)
    (block,) = rig.replicate([1])[1].blocks
    assert "GPU power cap" in block.disturbance


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
    assert gpu["mode"].startswith("transfers in, CUDA graph on")
    assert gpu["mode"].endswith("; up to 12 MiB for each profile's execution context")
    assert set(gpu["phases"]) == {"1", "4"}
    assert "GPU: transfers in" in (gpu_project.path / "r.txt").read_text()


def test_engines_on_the_processor_have_no_phases(project):
    project.judge("--gate-report-json=report.json")
    report = json.loads((project.path / "report.json").read_text())
    assert report["results"][0]["gpu"] is None
    assert report["results"][0]["context"]["power_limit"] == ""
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
