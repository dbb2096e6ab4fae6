"""A fleet's run without Ray: what is asked for, what machines are told, and what comes back."""

import _thread
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

from enginegate.baselines import changed_baselines, take_baselines
from enginegate.config import Shard
from enginegate.errors import BaselineError, FleetError
from enginegate.files import alone_here
from enginegate.session.fleet.cluster import Cluster, check_machines, connected
from enginegate.session.fleet.driver import FleetRun
from enginegate.session.fleet.jobs import Job, order_of
from enginegate.session.fleet.kept import Kept
from enginegate.session.fleet.shard import PROJECT, Order, run_shard
from enginegate.verdicts import Refresh

ROOT = Path(__file__).parents[2]
ORDER = Order((), ".", owns_cache=True, baselines="")


def table(project, text):
    path = project.path / "pyproject.toml"
    path.write_text(path.read_text() + f"\n[tool.enginegate.fleet]\n{text}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shard = 2", "*unknown keys ?'shard'?: use ?'kinds', 'shards'?*"),
        ("shards = 0", "*shards 0 is not a positive int*"),
        ("kinds = 3", "*kinds in pyproject.toml is not a table*"),
        ("kinds = { 'a/b' = 'x' }", "*'a/b' is no name of a kind*"),
        ("kinds = { x86 = 3 }", "*x86 is not the name of a Ray resource*ray start --resources=*"),
    ],
)
def test_a_wrong_table_is_refused_also_where_no_fleet_is_asked_for(project, text, said):
    table(project, text)
    result = project.judge()
    assert result.ret == 4
    result.stderr.fnmatch_lines([said])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gate-fleet=auto"], "*--gate-fleet without --precision runs nothing*"),
        (["--gate-fleet=auto", "--precision=fp32", "--gate-shard=1/2"], "*is for one machine*"),
        (["--gate-fleet=auto", "--precision=fp32", "--gate-calibrate"], "*is for one machine*"),
        (["--gate-fleet=auto", "--precision=fp33"], "*unknown precision*"),
    ],
)
def test_what_does_not_go_with_a_fleet_is_refused(project, arguments, said):
    result = project.run(*arguments)
    assert result.ret == 4
    result.stderr.fnmatch_lines([said])


def test_what_lies_in_the_project_moves_with_it_and_what_lies_beside_it_does_not():
    root = Path("/a/project")
    options: Any = SimpleNamespace(
        rootpath=root, engine_cache=root / "cache", refresh=Refresh.NONE, dry_run=False
    )
    spoken = ["/a/project", "--gate-workload=/a/project/x.txt", "--gate-sts=/a/project-data/y.tsv"]
    order = order_of(Job("", "", Shard(1, 2), (), 0), options, root / "tests", spoken)
    moved = (PROJECT, f"--gate-workload={PROJECT}/x.txt", "--gate-sts=/a/project-data/y.tsv")
    assert order.arguments[:3] == moved
    assert (order.folder, order.owns_cache) == ("tests", False)


def test_where_ray_is_not_installed_it_says_what_to_install(project, monkeypatch):
    monkeypatch.setattr("enginegate.session.fleet.cluster.find_spec", lambda _: None)
    result = project.judge("--gate-fleet=auto")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*needs ray, not installed: pip install*enginegate?fleet?*"])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "only a driver inside the cluster gets results as they come"),
        ("head", "neither `auto` nor HOST:PORT"),
        ("127.0.0.1:1", "cannot use the Ray cluster at 127.0.0.1:1: .*refused; start one with"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_one_error(monkeypatch, tmp_path, address, said):
    monkeypatch.setattr("enginegate.session.fleet.cluster.find_spec", lambda _: "there")
    with pytest.raises(FleetError, match=said), connected(address, tmp_path, []):
        pass


class Nodes:
    """What Ray says of its nodes."""

    def __init__(self, *resources):
        self._resources = resources

    def nodes(self):
        return [{"Alive": has.get("alive", True), "Resources": has} for has in self._resources]


def test_machines_are_those_that_live_and_have_the_resources():
    ray = Nodes(
        {"enginegate": 1, "xeon": 1, "CPU": 8},
        {"enginegate": 1, "CPU": 4},
        {"CPU": 4},
        {"enginegate": 1, "xeon": 1, "alive": False},
    )
    cluster = Cluster(ray, "auto")
    assert check_machines(cluster, {"x86": "xeon", "": ""}) == {"x86": 1, "": 2}
    with pytest.raises(FleetError, match="resource enginegate and neo, which machines of kind arm"):
        check_machines(cluster, {"arm": "neo"})
    with pytest.raises(FleetError, match=r'has the resource enginegate: .*{"enginegate": 1}'):
        check_machines(Cluster(Nodes({"CPU": 4}), "auto"), {"": ""})


def job(number, count=2):
    return Job("", "", Shard(number, count), (), 10)


def ended(report="{}", status=0):
    return {"ended": {"status": status, "report": report, "baselines": {}, "began_s": 0.0,
                      "ended_s": 1.0}}  # fmt: skip


class Scripted:
    """A cluster in which shards say what a test has written, a list for each try."""

    def __init__(self, script, machines=1):
        self._script, self._tries, self._left = script, {}, machines
        self.cancelled = []

    def machines(self, _resource):
        return [{}] * self._left

    def start(self, _order, _resource, name):
        self._tries[name] = number = self._tries.get(name, -1) + 1
        return name, iter(self._script[name][number])

    def events(self, streams, _wait_s):
        yield streams[0], self._said(streams[0])

    def _said(self, stream):
        event = next(stream[1])
        if event == "Ctrl-C":
            raise KeyboardInterrupt
        if event == "nobody left":
            self._left = 0
            event = {"line": "it gets dark"}
        return event

    def cancel(self, streams):
        self.cancelled += [name for name, _ in streams]


@pytest.fixture
def play(tmp_path):
    """Play scripts for the shards 1 and 2 of a fleet."""

    def play(first, second):
        said: list[str] = []
        kept = Kept(tmp_path / "fleet", tmp_path / "baselines")
        kept.empty()
        scripts = {"enginegate shard 1 of 2": first, "enginegate shard 2 of 2": second}
        cluster: Any = Scripted(scripts)
        run = FleetRun(cluster, {job(1): ORDER, job(2): ORDER}, kept, said.append)
        run.play()
        return run, said, cluster

    return play


GOOD = [{"node": "a" * 40}, {"began": {"host": "h"}}, ended()]


def reports(run):
    return sorted(path.name for path in run.kept.reports())


def test_a_clean_run_keeps_every_report(play):
    run, said, _ = play([GOOD], [GOOD])
    assert reports(run) == ["1-of-2.json", "2-of-2.json"]
    assert (run.done, run.unrun, run.problems) == (2, {}, [])
    assert said[-1] == "fleet: shard 2 of 2 is done after 1 s, exit status 0; 2 of 2"
    ran = json.loads((run.kept.folder / "shards.json").read_text())
    assert ran["shard 1 of 2"]["host"] == "h"
    assert ran["shard 1 of 2"]["tries"] == 1


def test_a_shard_whose_machine_dies_is_run_again(play):
    run, said, _ = play([[*GOOD[:2], {"lost": "the node died"}], GOOD], [GOOD])
    assert reports(run) == ["1-of-2.json", "2-of-2.json"]
    lost = "fleet: shard 1 of 2 was lost with h (node aaaaaaaa) and is run again (the node died)"
    assert lost in said
    assert json.loads((run.kept.folder / "shards.json").read_text())["shard 1 of 2"]["tries"] == 2


def test_a_shard_whose_machine_dies_again_and_again_is_given_up(play):
    run, _, _ = play([[*GOOD[:2], {"lost": "out of memory"}]] * 3, [GOOD])
    assert reports(run) == ["2-of-2.json"]
    assert run.unrun == {job(1): "its machine died 3 times, the last: out of memory"}


def test_a_shard_without_a_report_says_what_it_printed_last(play):
    lines = [{"line": "collected 4 items"}, {"line": ""}, {"line": "ERROR: no such model"}]
    run, _, _ = play([[*GOOD[:2], *lines, ended(None, 4)]], [GOOD])
    assert run.unrun == {
        job(1): "ended with exit status 4 and no report: collected 4 items / ERROR: no such model"
    }
    assert reports(run) == ["2-of-2.json"]


def test_a_shard_that_could_not_be_run_says_why(play):
    run, _, _ = play([[{"node": "b" * 40}, {"failed": "No module named 'enginegate'"}]], [GOOD])
    (why,) = run.unrun.values()
    assert why == "it could not be run on its machine (node bbbbbbbb): No module named 'enginegate'"


def test_a_shard_for_which_no_machine_is_left_is_not_waited_for(play):
    run, _, cluster = play([[*GOOD[:2], "nobody left"]], [GOOD])
    assert set(run.unrun.values()) == {"no machine that could run it is left"}
    assert sorted(cluster.cancelled) == ["enginegate shard 1 of 2", "enginegate shard 2 of 2"]


def test_ctrl_c_stops_all_and_keeps_what_is_finished(play):
    run, said, cluster = play([GOOD], [[*GOOD[:2], "Ctrl-C"]])
    assert run.is_interrupted
    assert cluster.cancelled == ["enginegate shard 2 of 2"]
    assert reports(run) == ["1-of-2.json"]
    assert "fleet: interrupted, 1 shards are stopped" in said
    assert run.unrun == {job(2): "the fleet was interrupted"}


def test_steps_of_a_shard_are_shown_and_all_it_prints_is_kept(play):
    lines = [{"line": "collected 2 items"}, {"line": "enginegate: speed of tiny"}]
    run, said, _ = play([[*GOOD[:2], *lines, ended()]], [GOOD])
    assert "[1/2] speed of tiny" in said
    log = (run.kept.folder / "1-of-2.log").read_text()
    assert log == "collected 2 items\nenginegate: speed of tiny\n"


def shard_of(tmp_path, test, *arguments):
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_it.py").write_text(test)
    order = dataclasses.replace(ORDER, arguments=(f"--rootdir={PROJECT}", "-q", *arguments))
    return list(run_shard(order, project))


@pytest.fixture
def bare(monkeypatch):
    """Have a shard's pytest know nothing of the plugin, which has no place in a bare project."""
    monkeypatch.setattr(
        "enginegate.session.fleet.shard._command",
        lambda order, project, _: [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider",
            *(word.replace(PROJECT, str(project)) for word in order.arguments),
        ],
    )  # fmt: skip


@pytest.mark.usefixtures("bare")
def test_a_shard_runs_in_a_copy_and_says_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--of-the-driver-only")
    test = "from pathlib import Path\ndef test_it():\n    Path('left').touch()\n    assert 0\n"
    began, *lines, last = shard_of(tmp_path, test)
    assert set(began["began"]) == {"host", "began_s"}
    assert any("1 failed" in event["line"] for event in lines)
    assert last["ended"]["status"] == 1
    assert last["ended"]["report"] is None
    assert not (tmp_path / "project" / "left").exists()


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("way", ["closed", "cancelled"])
def test_a_shard_that_is_left_ends_its_pytest(tmp_path, way):
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_it.py").write_text(
        "import os, time\n"
        "def test_it(capfd):\n"
        "    with capfd.disabled():\n"
        "        print('\\npid', os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    events = run_shard(dataclasses.replace(ORDER, arguments=(f"--rootdir={PROJECT}",)), project)
    said = (event.get("line", "") for event in events)
    pid = int(next(line for line in said if line.startswith("pid")).split()[1])
    if way == "closed":
        events.close()
    else:
        threading.Timer(0.2, _thread.interrupt_main).start()  # as Ray does
        with pytest.raises(KeyboardInterrupt):
            list(events)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_only_one_on_a_machine_has_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import time\n"
        "from enginegate.files import alone_here\n"
        "with alone_here('turn'):\n"
        "    print(time.time(), flush=True)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with alone_here("turn"):
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
        )
        time.sleep(2)
        assert other.poll() is None
        left_s = time.time()
    said, _ = other.communicate(timeout=60)
    assert float(said) > left_s


def test_baselines_of_a_machine_come_back_beside_those_that_are_there(project):
    project.store("fp32,int8")
    path = project.baseline()
    root, whole = project.path / "baselines", json.loads(path.read_text())
    name = str(path.relative_to(root))
    first, second = whole["variants"]
    before, after = project.path / "before", project.path / "after"
    for folder, keys in ((before, [first]), (after, [first, second])):
        one = folder / name
        one.parent.mkdir(parents=True)
        content = {**whole, "variants": {key: whole["variants"][key] for key in keys}}
        one.write_text(json.dumps(content))
    found = changed_baselines(before, after)
    assert list(json.loads(found[name])["variants"]) == [second]
    assert changed_baselines(after, after) == {}
    for bad in (
        "../m/tiny.json",
        "tiny.json",
        "m/../tiny.json",
        f"{before}/tiny.json",
        "/tiny.json",
    ):
        with pytest.raises(BaselineError, match="is no baseline of a machine: it is not written"):
            take_baselines(before, {bad: found[name]})
    assert take_baselines(before, found) == [before / name]
    assert json.loads((before / name).read_text())["variants"] == whole["variants"]


@pytest.mark.parametrize("name", ["../../evil.json", "machine.json", "m/../x.json"])
def test_what_is_no_baseline_of_a_machine_is_not_written(tmp_path, name):
    with pytest.raises(BaselineError):
        take_baselines(tmp_path / "baselines", {name: "{}"})
    with pytest.raises(BaselineError):
        take_baselines(tmp_path / "baselines", {"m/x.json": "{}"})
    assert not list(tmp_path.rglob("*.json"))


def test_no_library_of_ray_is_loaded_where_no_fleet_is_asked_for():
    code = "import sys, enginegate.session, enginegate.gate; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def manifest():
    return yaml.safe_load((ROOT / "docs" / "examples" / "rayjob.yaml").read_text())


def faults_of(manifest):
    fields = json.loads((ROOT / "tests/selftest/data/rayjob.fields.json").read_text())
    return [e.message for e in jsonschema.Draft202012Validator(fields).iter_errors(manifest)]


def test_the_manifest_for_kubernetes_is_what_kuberay_takes(manifest):
    assert faults_of(manifest) == []
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "two"
    manifest["spec"]["entryPoint"] = manifest["spec"].pop("entrypoint")
    assert len(faults_of(manifest)) == 2


def test_its_workers_may_run_shards_and_its_pods_never_share_a_machine(manifest):
    for group in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        (said,) = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(said)["enginegate"] == 1
        (rule,) = group["template"]["spec"]["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        labels = group["template"]["metadata"]["labels"]
        assert rule["labelSelector"]["matchLabels"].items() <= labels.items()
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "--gate-fleet=auto" in manifest["spec"]["entrypoint"]
