"""A fleet on a real Ray cluster of three nodes on this machine: `tox run -e fleet`.

The cluster is started once for all tests here. Ray changes the process that starts it, so they run
apart from the others.
"""

import itertools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from enginegate.cli import main

SUITE = Path(__file__).parents[1]
write_tiny_onnx = runpy.run_path(str(SUITE / "selftest" / "tiny.py"))["write_tiny_onnx"]
WAIT_S = 120.0
TABLE = """
[tool.enginegate]
backend = "onnxruntime"
batches = [1]
replicates = 3
measure_s = 0.1
max_time_per_variant = 6
sessions = 1
model = ["one", "two"]
[tool.enginegate.fleet]
shards = 2
[tool.enginegate.models.one]
onnx = "one.onnx"
vocab_size = 200
seq_len = 8
[tool.enginegate.models.two]
onnx = "two.onnx"
vocab_size = 200
seq_len = 8
"""
CONFTEST = """
import contextlib, dataclasses, os, pathlib, time
import pytest

OUTSIDE = pathlib.Path({outside!r})

def pytest_runtest_setup(item):
    mark, first = OUTSIDE / "hold-all", OUTSIDE / "first"
    if (OUTSIDE / "hold-second").exists():
        with contextlib.suppress(FileExistsError), first.open("x") as stream:
            stream.write(str(os.getpid()))
        if first.read_text() != str(os.getpid()):
            mark = OUTSIDE / "hold-second"
    if mark.exists():
        (OUTSIDE / "pids").open("a").write(f"{{os.getpid()}}\\n")
    while mark.exists():
        time.sleep(0.1)
    if (OUTSIDE / "crash-two").exists() and "two" in item.name:
        os._exit(3)

@pytest.fixture(scope="session")
def rig(rig):
    @contextlib.contextmanager
    def open_arms(batches, rng):
        began_s = time.time()
        with rig.open_arms(batches, rng) as arms:
            yield arms
        (OUTSIDE / "timed").open("a").write(f"{{os.getpid()}} {{began_s}} {{time.time()}}\\n")
    return dataclasses.replace(rig, open_arms=open_arms)
"""


class Fleet:
    """A project with two models, and runs of it on the cluster."""

    def __init__(self, folder, address):
        self.path, self.outside, self._address = folder / "project", folder / "outside", address
        self.kept = self.path / ".enginegate" / "fleet"

    def mark(self, name):
        (self.outside / name).touch()

    def unmark(self, name):
        (self.outside / name).unlink()

    def start(self, *arguments):
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pytest",
                f"--gate-fleet={self._address}",
                *arguments,
            ],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments, status=0):
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == status, said
        return said

    def alone(self, *arguments):
        """The report of the same in one process."""
        path = self.path / "alone.json"
        command = [sys.executable, "-m", "pytest", f"--gate-report-json={path}", *arguments]
        found = subprocess.run(command, check=False, cwd=self.path, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
        return json.loads(path.read_text())

    def held(self):
        """The process that waits in a test."""
        path = self.outside / "pids"
        until(lambda: path.exists() and path.read_text().endswith("\n"))
        return [int(line) for line in path.read_text().split()]

    def reports(self):
        return sorted(p.name for p in self.kept.glob("*.json") if p.name != "shards.json")


def until(found, wait_s=WAIT_S):
    end_s = time.monotonic() + wait_s
    while not found():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def read_until(process, pattern):
    """What a fleet prints up to a line."""
    said = []
    late = threading.Timer(WAIT_S, process.kill)
    late.start()
    for line in process.stdout:
        said.append(line)
        if re.search(pattern, line):
            late.cancel()
            return said
    raise AssertionError("".join(said))


@pytest.fixture(scope="module")
def cluster():
    """Three nodes that may run shards, two of them of a kind of their own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    found, small = Cluster(), {"object_store_memory": 80 << 20, "include_dashboard": False}
    for further in ({}, {"far": 1}, {"far": 1}):
        found.add_node(num_cpus=1, resources={"enginegate": 1, **further}, **small)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fleet(tmp_path, cluster, cache):
    found = Fleet(tmp_path, cluster.address)
    found.path.mkdir()
    found.outside.mkdir()
    for name in ("one", "two"):
        write_tiny_onnx(found.path / f"{name}.onnx")
    for name in ("test_accuracy", "test_throughput"):
        shutil.copy(SUITE / f"{name}.py", found.path)
    (found.path / "conftest.py").write_text(CONFTEST.format(outside=str(found.outside)))
    own = f'engine_cache = "{cache}"\n[tool.enginegate.fleet]'
    (found.path / "pyproject.toml").write_text(TABLE.replace("[tool.enginegate.fleet]", own))
    git = ["git", "-C", str(found.path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "the project"]):
        subprocess.run([*git, *words], check=True)
    return found


QUICK = ("--precision=fp32", "-k", "same_embeddings")


def decisions(report):
    return {
        (result["variant"]["model"], result["variant"]["precision"]): result["decision"]
        for result in report["results"]
    }


def test_the_same_verdicts_as_of_one_process_and_no_two_timings_at_once(fleet):
    said = fleet.run(
        "--precision=fp32,int8", "--gate-refresh-baselines", "--gate-report-json=f.json"
    )
    assert "4 engines in 2 shards, on 3 machines" in said
    for number in (1, 2):
        assert re.search(rf"shard {number} of 2 runs on \S+ \(node \w+\)", said)
        assert re.search(rf"shard {number} of 2 is done after \d+ s, exit status 0", said)
    whole = json.loads((fleet.path / "f.json").read_text())
    assert (whole["status"], whole["missing"]) == (0, [])
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=fleet.path, text=True)
    assert {one["origin"]["commit"] for one in whole["reports"]} == {commit.strip()}

    timed = [line.split() for line in (fleet.outside / "timed").read_text().splitlines()]
    assert len({pid for pid, *_ in timed}) == 2
    spans = sorted((float(began), float(ended), pid) for pid, began, ended in timed)
    for (_, ended, one), (began, _, other) in itertools.pairwise(spans):
        assert one == other or ended <= began

    (path,) = fleet.path.glob("baselines/*/one.json")
    assert set(json.loads(path.read_text())["variants"]) == {"onnxruntime-fp32", "onnxruntime-int8"}
    alone = fleet.alone("--precision=fp32,int8")
    assert all(result["identical"] for result in alone["results"])  # the baselines are of here
    split = [json.loads((fleet.kept / name).read_text()) for name in fleet.reports()]
    assert {**decisions(split[0]), **decisions(split[1])} == decisions(alone)


def test_a_shard_that_crashes_is_named_and_the_others_are_kept(fleet):
    fleet.mark("crash-two")
    said = fleet.run(*QUICK, status=12)
    assert re.search(r"shard \d of 2: ended with exit status 3 and no report: ", said)
    assert re.search(r"missing: shard \d of 2: two fp32", said)
    assert len(fleet.reports()) == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_ends_leaves_nothing_running_and_keeps_what_is_finished(fleet, how, capsys):
    fleet.mark("hold-second")
    process = fleet.start(*QUICK)
    said = read_until(process, "1 of 2$")
    (held,) = fleet.held()
    process.send_signal(how)
    rest, _ = process.communicate(timeout=WAIT_S)
    until(lambda: not psutil.pid_exists(held))
    assert len(fleet.reports()) == 1
    if how is signal.SIGKILL:
        assert main(["merge", *map(str, fleet.kept.glob("*of-2.json"))]) == 12
        rest = capsys.readouterr().out
    else:
        assert process.returncode == 2, "".join(said) + rest
        assert "interrupted, 1 shards are stopped" in rest
    assert re.search(r"missing: shard \d of 2: (one|two) fp32", rest)
    assert "Traceback" not in rest


def far(fleet):
    """Have one kind of machine: the two nodes that are far."""
    path = fleet.path / "pyproject.toml"
    path.write_text(path.read_text().replace("shards = 2", "shards = 1\nkinds = { far = 'far' }"))


def kill_node_of(cluster, line):
    (short,) = re.findall(r"\(node (\w+)\)", line)
    (node,) = (n for n in cluster.list_all_nodes() if n.node_id.startswith(short))
    cluster.remove_node(node, allow_graceful=False)


def test_what_no_machine_has_is_one_error(fleet):
    far(fleet)
    path = fleet.path / "pyproject.toml"
    path.write_text(path.read_text().replace("'far'", "'further'"))
    said = fleet.run(*QUICK, status=4)
    assert "has the resource enginegate and further, which machines of kind far have: start" in said


def test_a_killed_node_has_its_shard_run_elsewhere_and_the_last_one_is_missed(fleet, cluster):
    far(fleet)
    fleet.mark("hold-all")
    process = fleet.start(*QUICK, "--gate-report-json=f.json")
    *_, line = read_until(process, "shard 1 of 1 on far runs on")
    (first,) = fleet.held()
    kill_node_of(cluster, line)
    until(lambda: not psutil.pid_exists(first))
    *lost, line = read_until(process, "shard 1 of 1 on far runs on")
    assert any("was lost with" in said and "is run again" in said for said in lost)
    fleet.unmark("hold-all")
    rest, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, rest
    (ran,) = json.loads((fleet.kept / "shards.json").read_text()).values()
    assert ran["tries"] == 2
    (report,) = json.loads((fleet.path / "f.json").read_text())["reports"]
    assert report["kind"] == "far"

    (fleet.outside / "pids").unlink()
    fleet.mark("hold-all")
    process = fleet.start(*QUICK)
    *_, line = read_until(process, "shard 1 of 1 on far runs on")
    fleet.held()
    kill_node_of(cluster, line)
    rest, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 12, rest
    assert "shard 1 of 1 on far: no machine that could run it is left" in rest
