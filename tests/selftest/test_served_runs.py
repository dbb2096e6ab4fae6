"""Whole runs with --gate-serve on a real tritonserver, with the tiny model and planted faults."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from enginegate.files import default_cache
from enginegate.serving.load.capacity import SearchRules, find_capacity
from enginegate.serving.load.generator import open_generator
from enginegate.serving.load.sweep import LevelRules, run_level
from enginegate.serving.served import ServedEngine
from enginegate.serving.triton.server import _Supervisor
from enginegate.verdicts import Exit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]

SERVE = ("--gate-serve=triton", "--gate-concurrency=1,4", "--gate-max-batch-size=8")
LENIENT = "--gate-max-slowdown=1e30"  # of what is not the subject; three replicates tell little
SERVED = ("-k", "served or carries")
DEADLINE_S = 120.0  # of what takes seconds on a quiet machine
BRIEF = LevelRules(warm_up_s=0.1, min_window_s=0.25, window_requests=30, limit_s=1.25)


@pytest.fixture
def clients_stay(monkeypatch):
    """Client processes stay over all replicates of a test; test_serving_rig.py sees them go."""
    generators = {}

    @contextlib.contextmanager
    def kept(exchange):
        if exchange.endpoint not in generators:
            generators[exchange.endpoint] = stack.enter_context(open_generator(exchange))
        yield generators[exchange.endpoint]

    with contextlib.ExitStack() as stack:
        monkeypatch.setattr("enginegate.serving.measure.open_generator", kept)
        yield


@pytest.fixture
def serving(project, monkeypatch, keep_time, server_packages, clients_stay):
    """The project, with the server's packages from the cache of this machine."""
    keep_time(time)  # a server's time is not skipped
    monkeypatch.setattr("enginegate.speed.timing.TURN_S", 0.006)
    monkeypatch.setattr("enginegate.speed.timing.SETTLE_BELOW_S", 0.0)  # its windows warm up
    monkeypatch.setattr("enginegate.session._SERVED", 3)
    monkeypatch.setattr("enginegate.serving.measure.run_level", partial(run_level, rules=BRIEF))
    monkeypatch.setattr("enginegate.serving.measure._REPLICATE_S", 0.1)
    monkeypatch.setattr("enginegate.serving.measure._WARM_UP_S", 0.02)
    monkeypatch.setattr("enginegate.serving.measure._FEWEST_ANSWERS", 5)
    monkeypatch.setattr("enginegate.serving.load.generator._PROBE_S", 0.05)
    monkeypatch.setattr(ServedEngine, "load_anew", load_once())
    packages = lambda _store, _progress: server_packages  # noqa: E731
    monkeypatch.setattr("enginegate.serving.served.server_environment", packages)
    source = Path(__file__).parents[1] / "test_serving.py"
    (project.path / "test_serving.py").write_text(source.read_text())
    project.servers = names_of_servers(monkeypatch)
    return project


def load_once():
    """Loads a server's models for the first replicate; they stay for the others.

    That a rig loads them anew for each, and how, is tested beside the rig and beside the server.
    """
    loaded = set[tuple[Any, str]]()

    def load(served, models):
        missing = {(served.started, name) for name in models} - loaded
        loaded.update(missing)
        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(lambda one: one[0].load(one[1]), missing))

    return load


def names_of_servers(monkeypatch):
    """The folders' names of all servers that this process starts from now on."""
    names, really = set(), _Supervisor.__init__

    def started(supervisor, process):
        really(supervisor, process)
        names.add(supervisor.folder.name)

    monkeypatch.setattr(_Supervisor, "__init__", started)
    return names


def serve(project, *arguments):
    return project.judge(*SERVE, "--gate-max-time-per-variant=6", *arguments)


def left_behind(names, folder=None):
    """Segments of shared memory and folders of servers, of these and not of another run's."""
    segments = [path for path in Path("/dev/shm").glob("*") if any(n in path.name for n in names)]  # noqa: S108
    folders = [Path(folder or tempfile.gettempdir(), name) for name in names]
    return {*segments, *(path for path in folders if path.exists())}


def stays(look):
    """What is left and does not go."""
    end = time.monotonic() + DEADLINE_S
    while (left := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def is_clean(serving):
    """Whether servers were started, and nothing is left of them."""
    return bool(serving.servers) and not stays(lambda: left_behind(serving.servers))


@pytest.fixture
def refresh(serving, kept):
    """Store the baselines of the served engine, and keep them for the tests that only need them."""

    def run(*arguments):
        found = serve(serving, *SERVED, "--gate-refresh-baselines", *arguments)
        for name in ("cache", "baselines") if found.ret == 0 else ():
            shutil.copytree(serving.path / name, kept / "served" / name, dirs_exist_ok=True)
        return found

    return run


@pytest.fixture
def stored(serving, refresh, kept):
    """The project with the baselines of its served engine."""
    if not (kept / "served").exists():
        assert refresh().ret == 0
    shutil.copytree(kept / "served", serving.path, dirs_exist_ok=True)
    return serving


def test_a_served_engine_is_checked_loaded_and_stored(serving, refresh):
    first = refresh("--gate-report-text=report.txt", "--gate-model-repository=repository")
    first.assert_outcomes(passed=2, deselected=4)
    first.stdout.fnmatch_lines(
        ["fp32 served: load: no baseline: *", "baselines: new  tiny-faulty-fp32-served"]
    )
    text = (serving.path / "report.txt").read_text()
    line = r"\nConcurrency: 4, throughput: [\d.]+ infer/sec, latency \d+ usec"
    assert re.search(line, text)
    model = serving.path / "repository" / "tiny-faulty-fp32"
    assert "max_batch_size: 8" in (model / "config.pbtxt").read_text()
    assert (model / "1" / "model.py").exists()
    stored = json.loads(serving.baseline().read_text())["variants"]["faulty-fp32-served"]
    assert stored["load"]["cliffs"] == []
    assert set(stored["load"]["throughput_per_s"]) == {"1", "4"}


def test_the_same_served_engine_passes(stored):
    same = serve(stored, *SERVED, "--gate-require-baseline", LENIENT)
    same.assert_outcomes(passed=2, deselected=4)
    same.stdout.fnmatch_lines(["hold *fp32 served  f32*"])


def test_a_new_cliff_regresses(stored, monkeypatch):
    """By its load alone: its speed is not measured here."""
    monkeypatch.setattr("enginegate.session.served._is_compared", lambda *_: False)
    stored.plant("served: slow batches of 2 to 4")
    broken = serve(stored, *SERVED)
    assert broken.ret == Exit.REGRESSED
    broken.stdout.fnmatch_lines(["*regressed: *new cliff at concurrency 4 *"])
    assert is_clean(stored)


def test_a_slower_served_engine_regresses_beside_the_saved_one(serving, monkeypatch):
    monkeypatch.setattr("enginegate.speed.rules.ALARM", 0.2)  # then three fresh replicates do
    serving.judge("--gate-save-engines=saved", "-k", "embeddings and not served")
    serving.plant("served: slow")
    slow = serve(
        serving,
        *SERVED,
        "--gate-concurrency=1",
        "--gate-against=saved",
        "--gate-max-time-per-variant=900",
    )
    assert slow.ret == Exit.REGRESSED
    slow.stdout.fnmatch_lines(["fp32 served: concurrency *regressed: * slower *"])


def test_a_delay_is_found_and_what_is_advised_against_it_is_tried(stored):
    """Not compared with what was stored of another deployment."""
    delayed = (
        "--gate-preferred-batch-sizes=8",
        "--gate-max-queue-delay-us=100000",
        "--gate-report-json=r.json",
    )
    found = serve(stored, *SERVED, "--gate-concurrency=1,8", *delayed)
    found.assert_outcomes(passed=2, deselected=4)
    found.stdout.fnmatch_lines(["*cause: queue delay; requests waited *", "*tried in this run*"])
    found.stdout.fnmatch_lines(["*incomparable*deployment was *delay 0 us*is *delay 100000 us*"])
    (cliff,) = served_load(stored)["analysis"]["cliffs"]
    assert (cliff["first"], cliff["last"], cliff["proven"]) == (1, 1, True)
    assert set(cliff["tried_per_s"]) == {"1"}
    assert cliff["throughput_per_s"] < 10  # of one at a time, each held back for 0.1 s
    assert all(per_s > 20 for per_s in cliff["tried_per_s"].values())
    assert is_clean(stored)


def test_the_highest_rate_that_holds_a_latency_is_sought(serving, monkeypatch):
    monkeypatch.setattr("enginegate.serving.measure._OPEN_S", 0.5)
    monkeypatch.setattr("enginegate.serving.measure._MOST_OPEN_S", 0.5)
    coarse = partial(find_capacity, rules=SearchRules(precision=1.0, repeats=1))
    monkeypatch.setattr("enginegate.serving.measure.find_capacity", coarse)
    asked = (
        "--gate-concurrency=1",
        "--gate-rates=20",
        "--gate-slo=p99=200ms",
        "--gate-report-json=r.json",
    )
    serve(serving, *SERVED, *asked).assert_outcomes(passed=2, deselected=4)
    load = served_load(serving)
    assert load["open_levels"][0]["rate_per_s"] == 20
    assert load["capacity"]["low_per_s"] >= load["levels"][0]["throughput_per_s"] / 2
    assert load["capacity"]["end"] in ("found", "holds up to the client's limit")


def test_a_backend_of_ones_own_is_one_file_and_one_line(serving):
    """The example of the guide, as it stands there: judged, served and reported."""
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    files = dict(re.findall(r"```python\n# (conftest|plain_backend)\.py\n(.*?)```", guide, re.S))
    for name, text in files.items():
        serving.write(f"{name}.py", text)
    table = (serving.path / "pyproject.toml").read_text()
    serving.write("pyproject.toml", table.replace("measure_s = 4\n", "measure_s = 0.04\n"))
    extras = ("--gate-report-json=r.json", "--gate-model-repository=repository")
    run = serve(serving, "--gate-backend=plain", "--gate-concurrency=1", *extras)
    run.assert_outcomes(passed=6)
    run.stdout.fnmatch_lines(["fp32 served: load: no baseline: *"])
    assert files["conftest"].count("register(") == 1
    (loaded,) = (serving.path / "repository").glob("*/1/engine.json")
    assert json.loads(loaded.read_text())["target"] == "plain_backend:Plain"
    results = json.loads((serving.path / "r.json").read_text())["results"]
    assert [result["variant"]["backend"] for result in results] == ["plain", "plain"]
    assert served_load(serving)["levels"][0]["throughput_per_s"] > 0


def served_load(serving):
    """The load in the JSON report."""
    results = json.loads((serving.path / "r.json").read_text())["results"]
    return next(result["load"] for result in results if result["variant"]["served"])


def test_other_embeddings_than_in_this_process_fail_and_are_not_loaded(serving):
    serving.plant("served: other embeddings")
    wrong = serve(serving, *SERVED)
    assert wrong.ret == Exit.EMBEDDINGS
    wrong.stdout.fnmatch_lines(
        [
            "*gives other embeddings than in this process: text *",
            "*server's log*",
            "*Started GRPCInferenceService*",
        ]
    )
    wrong.assert_outcomes(failed=1, skipped=1, deselected=4)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        # whoever sees it first: a client, or who asks the server for its statistics
        ("served: kills the server", r"the server ended with status -9\. "),
        ("served: does not load", ".*planted: it does not load"),
    ],
)
def test_a_server_that_fails_is_one_clear_error_and_nothing_is_left(serving, fault, message):
    serving.plant(fault)
    broken = serve(serving, *SERVED)
    assert broken.ret == Exit.ERROR
    broken.stdout.re_match_lines([message])
    assert is_clean(serving)


def test_a_server_that_is_not_there_is_one_clear_error(project, serving):
    result = project.judge("--gate-serve=http://127.0.0.1:9/tiny", *SERVED)
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["*tiny on http://127.0.0.1:9: *see that the server runs there*"])


def test_nothing_is_left_of_a_run_that_is_killed_in_mid_sweep(serving, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    levels = ("--gate-concurrency=1:32", "-k", "carries", f"--gate-engine-cache={default_cache()}")
    command = [sys.executable, "-m", "pytest", "--precision=fp32", "--gate-serve=triton", *levels]
    with subprocess.Popen(command, cwd=serving.path, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert any("concurrency 2" in line for line in run.stdout)
        names = {path.name for path in tmp_path.glob("enginegate-server-*")}
        assert len(left_behind(names, tmp_path)) > 1  # its folder, and its segments
        os.kill(run.pid, signal.SIGKILL)
    assert not stays(lambda: left_behind(names, tmp_path))
    assert not stays(lambda: servers_of(serving.path))


def servers_of(folder):
    """Processes that were started from a folder."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            found |= {place.parent.name} if place.resolve() == folder else set()
    return found - {str(os.getpid())}
