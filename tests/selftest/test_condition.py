"""What a host took from a machine while something was timed: planted, and seen."""

from dataclasses import replace

import pytest

from enginegate.machine.condition import Condition, disturbance

QUIET = Condition(time_s=1.0, cpu_s=1.0, steal_s=1.0, switches=10, throttled_s=1.0)
LATER = replace(QUIET, time_s=2.0, cpu_s=2.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"steal_s": 1.09}, ""),
        ({"steal_s": 1.11}, "steal"),
        ({"throttled_s": 1.001}, "throttled"),
        ({"switches": 200}, "preempted"),
        ({"cpu_s": 1.8}, "off the processor"),
        ({"steal_s": 2.0, "cpu_s": 1.5}, "steal, off the processor"),
    ],
)
def test_each_disturbance_is_named(change, said):
    assert disturbance(QUIET, replace(LATER, **change), own=True) == said


def test_a_process_that_only_waits_is_not_blamed_for_it():
    assert disturbance(QUIET, replace(LATER, cpu_s=1.0, switches=500), own=False) == ""


def test_the_counters_of_the_host_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("enginegate.machine.condition._STAT", tmp_path / "stat")
    monkeypatch.setattr("enginegate.machine.condition._CGROUP", tmp_path / "cpu.stat")
    monkeypatch.setattr("os.sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    (tmp_path / "stat").write_text("cpu  9 0 9 9 9 0 0 250 0 0\ncpu0 9 0 9 9 9 0 0 7 0 0\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 12\nthrottled_usec 1500000\n")
    read = Condition.now()
    assert (read.steal_s, read.throttled_s) == (2.5, 1.5)


def test_a_system_without_counters_is_not_disturbed(quiet_host):
    read = Condition.now()
    assert (read.steal_s, read.throttled_s) == (0.0, 0.0)
