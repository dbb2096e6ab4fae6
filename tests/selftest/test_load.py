"""The load generator against a server that fails as planted; rules and search on fakes."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from tests.selftest.kserve import OUTPUT, TEXTS, embed, kserve, tokens

from enginegate.errors import ServingError
from enginegate.levels import (
    Arrivals,
    Endpoint,
    Latency,
    Level,
    OpenLevel,
    Protocol,
    SearchEnd,
    Slo,
)
from enginegate.serving.capacity import SearchRules, find_capacity
from enginegate.serving.exchange import INFER_METHOD, make_exchange, read_answer
from enginegate.serving.load import open_generator, schedule
from enginegate.serving.perf_analyzer import PerfAnalyzer, find_perf_analyzer, run_perf_analyzer
from enginegate.serving.statistics import PHASES, Phase, ServerStatistics
from enginegate.serving.sweep import LevelRules, run_level, run_open, run_sweep
from enginegate.serving.windows import Fault, OpenWindow, Window, cut, pool

QUICK = LevelRules(warm_up_s=0.05, min_window_s=0.05, limit_s=0.8, window_requests=20, tolerance=9)


def exchange(address, protocol=Protocol.HTTP, expected=None):
    batch = tokens()
    expected = embed(batch["input_ids"]) if expected is None else expected
    return make_exchange(Endpoint(protocol, address, "fake"), batch, OUTPUT, expected, 1e-3)


@contextlib.contextmanager
def loaded(timeout_s=5.0, **faults):
    with kserve(**faults) as server, alone(server.address, timeout_s=timeout_s) as generator:
        yield generator


def alone(address, protocol=Protocol.HTTP, timeout_s=5.0):
    """A generator with one client process."""
    return open_generator(exchange(address, protocol), timeout_s=timeout_s, most_processes=1)


def no_statistics():
    return None


def level(generator, concurrency=2, rules=QUICK):
    return run_level(generator, concurrency, no_statistics, "test", rules)


def test_closed_loop_keeps_so_many_outstanding_and_counts_each():
    with loaded() as generator, generator.closed(3) as running:
        windows = [running.window(0.2) for _ in range(2)]
    whole = pool(windows)
    assert whole.requests > 20
    assert whole.errors == whole.wrong == Fault()
    assert whole.throughput_per_s * whole.mean_s == pytest.approx(3, rel=0.1)
    assert whole.duration_s == pytest.approx(0.4)
    assert 0 < whole.client_share < 1


def test_level_is_measured_and_verified():
    with loaded() as generator:
        found = level(generator)
    assert found.concurrency == 2
    assert found.driver == "test"
    assert found.requests > 20
    assert found.breakdown is None
    assert found.latency.p50_s <= found.latency.p99_s <= found.latency.max_s


@pytest.mark.parametrize("after", [0, 100])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong", "differs by 1"),
        ("nan", "differs by nan"),
        ("short", "3 values, not 4"),
        ("garbage", "no KServe answer in 5 bytes"),
        ("error", "HTTP/1.1 500 Internal Server Error: the instance ran out of memory"),
        ("drop", "connection lost"),
    ],
)
def test_planted_fault_is_named(fault, words, after):
    with loaded(fault=fault, after=after) as generator:
        with pytest.raises(ServingError) as caught:
            level(generator)
        assert words in str(caught.value)
        assert "at concurrency 2" in str(caught.value)


def test_silent_server_is_given_up_in_time():
    with loaded(timeout_s=0.3, fault="silence", after=30) as generator:
        start = time.monotonic()
        with pytest.raises(ServingError, match=r"no answer in 0.3 s"):
            level(generator)
        assert time.monotonic() - start < 5


def test_server_that_nobody_runs():
    with kserve() as server:
        address = server.address
    with open_generator(exchange(address)) as generator:
        with pytest.raises(ServingError, match=r"cannot connect to 127.*is it serving"):
            level(generator)
        with pytest.raises(ServingError, match="cannot connect"):
            generator.open(100, Arrivals.CONSTANT, 0.1, 0)


def test_generator_goes_on_after_a_failed_level():
    with kserve(fault="drop", after=50) as server, alone(server.address) as generator:
        with pytest.raises(ServingError, match="connection lost"):
            level(generator)
        server.fault = ""
        assert level(generator).requests > 20


@pytest.mark.parametrize("arrivals", list(Arrivals))
def test_open_loop_sees_a_stall_that_closed_loop_hides(arrivals):
    with loaded(after=40, stall=0.3) as generator:
        stalled = run_open(generator, 200, arrivals, 0.7, 1)
    assert stalled.requests == 140
    assert stalled.marks == ()
    assert stalled.latency.max_s == pytest.approx(0.3, abs=0.1)
    assert stalled.latency.p90_s > 0.1  # about 60 of 140 were due while the server stood still
    with loaded(after=40, stall=0.3) as generator, generator.closed(1) as running:
        window = running.window(0.6)
    assert window.latency.p90_s < 0.1
    assert window.latency.max_s == pytest.approx(0.3, abs=0.1)


def test_open_loop_counts_what_was_never_answered():
    with loaded(timeout_s=0.3, fault="silence", after=10) as generator:
        found = run_open(generator, 50, Arrivals.CONSTANT, 0.4, 1)
    assert found.requests == 20
    assert found.marks == ("10 of 20 requests were never answered",)
    assert found.latency.max_s > 0.3
    assert found.latency_from_send.max_s < found.latency.max_s


def test_open_loop_says_when_requests_waited_for_a_connection():
    with loaded(after=5, stall=0.3) as generator:
        found = generator.open(100, Arrivals.CONSTANT, 0.5, 1, most_connections=2)
    assert found.held
    assert found.unanswered == 0
    assert found.latencies_s.max() > found.latencies_from_send_s[6:].min()
    assert len(found.latencies_s) == 50


@pytest.mark.parametrize(("fault", "words"), [("error", "ran out of memory"), ("wrong", "differs")])
def test_open_loop_names_faults(fault, words):
    with loaded(fault=fault, after=5) as generator, pytest.raises(ServingError, match=words):
        run_open(generator, 100, Arrivals.CONSTANT, 0.5, 1)


def test_several_processes_share_a_level():
    with (
        kserve() as server,
        open_generator(exchange(server.address), most_processes=2) as generator,
    ):
        generator._needed = 2
        with generator.closed(3) as running:
            window = running.window(0.3)
        assert len(generator._clients) == 2
        opened = generator.open(100, Arrivals.POISSON, 0.3, 1)
    assert window.throughput_per_s * window.mean_s == pytest.approx(3, rel=0.1)
    assert window.wrong == Fault()
    assert opened.requests == len(opened.latencies_s) == 30


def test_clients_end_with_a_killed_parent():
    with kserve() as server:
        parent = subprocess.Popen(
            [sys.executable, "-c", KILLED, server.address],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert parent.stdout is not None
        client = int(parent.stdout.readline())
        assert is_running(client)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        end = time.monotonic() + 5
        while is_running(client) and time.monotonic() < end:
            time.sleep(0.02)
    assert not is_running(client)


KILLED = textwrap.dedent(
    """
    import sys, time
    from tests.selftest.test_load import exchange
    from enginegate.serving.load import open_generator
    with open_generator(exchange(sys.argv[1]), most_processes=1) as generator:
        with generator.closed(2) as running:
            print(generator._clients[0]._process.pid, flush=True)
            time.sleep(60)
    """
)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_client_is_named():
    with loaded() as generator, generator.closed(1) as running:
        os.kill(generator._clients[0]._process.pid, signal.SIGKILL)
        with pytest.raises(ServingError, match="ended with status -9"):
            running.window(0.1)


def test_grpc_answers_are_verified():
    with grpc_server(embed) as address, alone(address, Protocol.GRPC) as generator:
        found = level(generator)
        opened = run_open(generator, 100, Arrivals.CONSTANT, 0.3, 1)
    assert found.requests > 20
    assert opened.requests == 30
    with grpc_server(lambda ids: embed(ids) + 1) as address, alone(address, Protocol.GRPC) as other:
        assert_fails(other, "differs by 1")


def test_grpc_error_has_the_servers_message():
    def refuse(_ids):
        raise ValueError("no such model")

    with grpc_server(refuse) as address, alone(address, Protocol.GRPC) as generator:
        assert_fails(generator, r"UNKNOWN.*no such model")


def assert_fails(generator, words):
    with pytest.raises(ServingError, match=words):
        level(generator)


@contextlib.contextmanager
def grpc_server(answer):
    from concurrent.futures import ThreadPoolExecutor

    from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

    def infer(data, _context):
        ids = np.frombuffer(ModelInferRequest.FromString(data).raw_input_contents[0], np.int64)
        response = ModelInferResponse(model_name="fake")
        values = answer(ids[None])
        response.outputs.add(name=OUTPUT, datatype="FP32", shape=values.shape)
        response.raw_output_contents.append(values.tobytes())
        return response.SerializeToString()

    service, _, method = INFER_METHOD[1:].partition("/")
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(infer)}
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_exchange_needs_an_expectation_for_each_text():
    with pytest.raises(ServingError, match=f"3 expected embeddings for {TEXTS} texts of fake"):
        exchange("127.0.0.1:1", expected=np.zeros((3, 4), np.float32))


def test_another_output_is_no_answer():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 14"
    with pytest.raises(ServingError, match="no output 'other' in the answer"):
        read_answer(Protocol.HTTP, head, b'{"outputs":[]}', "other")


def test_schedules():
    even = schedule(100, Arrivals.CONSTANT, 2, 0)
    assert np.allclose(np.diff(even), 0.01)
    assert len(even) == 200
    random = schedule(1000, Arrivals.POISSON, 20, 5)
    gaps = np.diff(random)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert np.array_equal(random, schedule(1000, Arrivals.POISSON, 20, 5))


def test_a_request_across_the_edge_counts_by_its_part():
    sent, received = np.array([0.0, 2.0, 3.0]), np.array([2.0, 3.0, 7.0])
    window = cut(sent, received, 1, 5)
    assert window.answered == pytest.approx(0.5 + 1 + 0.5)
    assert window.mean_s == pytest.approx(2)
    assert window.throughput_per_s * window.mean_s == pytest.approx(1)
    assert window.latencies_s.tolist() == [2, 1]


class FakeGenerator:
    """Windows as they are given; the last again and again."""

    def __init__(self, *windows):
        self.windows = list(windows)

    @contextlib.contextmanager
    def closed(self, _concurrency):
        yield self

    def window(self, time_s):
        window = self.windows.pop(0) if len(self.windows) > 1 else self.windows[0]
        return replace(window, duration_s=time_s, answered=window.answered * time_s)

    def open(self, *_arguments):
        return self.windows[0]


def seen(rate, concurrency=4, share=0.1, **more):
    """A second at a rate, with as many outstanding as there should be."""
    latencies = np.full(rate, concurrency / rate)
    return Window(latencies, 1.0, rate, 1.0, share, **more)


class OneRate(FakeGenerator):
    """Whatever was outstanding, in proportion to the window."""

    def __init__(self, concurrency, *windows):
        super().__init__(*windows)
        self.concurrency = concurrency

    def window(self, time_s):
        return replace(super().window(time_s), outstanding_s=self.concurrency * time_s)


RULES = LevelRules()


def test_steady_level_has_no_mark():
    found = run_level(OneRate(4, seen(100)), 4, no_statistics, "fake", RULES)
    assert found.marks == ()
    assert found.throughput_per_s == pytest.approx(100)
    assert found.latency.mean_s == pytest.approx(0.04)


def test_warm_up_and_unsteady_beginning_are_left_out():
    generator = OneRate(4, seen(10), seen(50), seen(100))
    found = run_level(generator, 4, no_statistics, "fake", RULES)
    assert found.throughput_per_s == pytest.approx(100)
    assert found.marks == ()


def test_level_that_never_agrees_is_unstable():
    generator = OneRate(4, *[seen(rate) for rate in (100, 100, 150) * 20])
    found = run_level(generator, 4, no_statistics, "fake", RULES)
    assert found.marks == ("unstable: 100 to 150 infer/s in its last windows",)


def test_client_that_was_the_bottleneck_is_marked():
    found = run_level(OneRate(4, seen(100, share=0.95)), 4, no_statistics, "fake", RULES)
    assert found.marks == ("client-bound: a client process was busy 95% of the time",)


def test_littles_law_is_checked():
    found = run_level(OneRate(3.7, seen(100)), 4, no_statistics, "fake", RULES)
    (mark,) = found.marks
    assert mark == "client-bound: by Little's law 3.70 requests were outstanding, not 4"


def test_wrong_answer_ends_the_level():
    bad = seen(100, wrong=Fault(2, "text 7: differs by 0.3"))
    with pytest.raises(ServingError, match=r"2 sampled answers are wrong .* text 7: differs by"):
        run_level(OneRate(4, bad), 4, no_statistics, "fake", RULES)


def test_breakdown_adds_up_to_the_latency():
    def counted(times):
        phase = Phase(100 * times, 100 * times * 2_000_000)
        return ServerStatistics(**dict.fromkeys(PHASES, phase), batches={4: 25 * times})

    calls = iter(range(100))
    generator = OneRate(4, seen(100))
    found = run_level(generator, 4, lambda: counted(next(calls)), "fake", RULES)
    assert found.breakdown is not None
    assert found.breakdown.queue_s == pytest.approx(0.002)
    assert sum(vars(found.breakdown).values()) == pytest.approx(found.latency.mean_s)
    assert found.batches == {4: 75}


def test_sweep_tells_of_each_level():
    told: list[Level] = []
    generator = OneRate(4, seen(100))
    found = run_sweep(generator, [4, 4], no_statistics, "fake", told.append, RULES)
    assert found == tuple(told)
    assert len(found) == 2


def test_open_marks():
    seconds = np.array([0.1, 0.2])
    window = OpenWindow(seconds, seconds, 1.0, 3, 1, held=True, client_share=0.95)
    found = run_open(FakeGenerator(window), 3, Arrivals.CONSTANT, 1, 0)
    assert found.marks == (
        "1 of 3 requests were never answered",
        "requests waited for one of 256 connections",
        "client-bound: a client process was busy 95% of the time",
    )


SLO = Slo("p99", 0.02)


def server_of(capacity, noise=0.0, client=1e9, seed=0):
    """p99 grows as it does before a queue, is beyond all limits above the capacity."""
    rng = np.random.default_rng(seed)

    def probe(rate):
        p99_s = 0.02 * (capacity / 2) / max(capacity - rate, 1e-9) * np.exp(noise * rng.normal())
        latency = Latency(p99_s / 4, p99_s / 4, p99_s / 2, p99_s / 2, p99_s, 2 * p99_s)
        marks = (
            ("client-bound: a client process was busy 95% of the time",) if rate > client else ()
        )
        return OpenLevel(rate, Arrivals.POISSON, rate, latency, latency, 100, 1.0, marks=marks)

    return probe  # holds p99 <= 20 ms up to half the capacity


@pytest.mark.parametrize("start", [1, 90, 5000])
def test_capacity_is_found_from_anywhere(start):
    found = find_capacity(server_of(200), SLO, start)
    assert found.end is SearchEnd.FOUND
    assert found.high_per_s is not None
    assert found.low_per_s <= 100 < found.high_per_s
    assert found.high_per_s <= 1.05 * found.low_per_s


def test_capacity_near_the_truth_with_noise():
    found = [find_capacity(server_of(200, 0.1, seed=s), SLO, 40).low_per_s for s in range(40)]
    assert np.median(found) == pytest.approx(100, rel=0.05)
    assert np.std(found) < 8


def test_noise_near_the_limit_is_probed_again():
    probes = find_capacity(server_of(200, 0.1), SLO, 40).probes
    rates = [level.rate_per_s for level in probes]
    assert max(map(rates.count, rates)) in (2, 3)
    assert rates.count(rates[0]) == 1  # far from the limit


def test_capacity_that_never_holds():
    found = find_capacity(server_of(1e-3), SLO, 50)
    assert found.end is SearchEnd.NEVER
    assert found.low_per_s == 0
    assert found.high_per_s == SearchRules().least_per_s


def test_capacity_beyond_the_client():
    found = find_capacity(server_of(1e6, client=1000), SLO, 50)
    assert found.end is SearchEnd.CLIENT
    assert found.high_per_s is None
    assert 900 < found.low_per_s <= 1000


def test_capacity_beyond_the_highest_rate():
    found = find_capacity(server_of(1e6), SLO, 50, SearchRules(most_per_s=3000))
    assert found.end is SearchEnd.HIGHEST
    assert (found.low_per_s, found.high_per_s) == (3000, None)


def test_perf_analyzer_missing_or_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ServingError, match="no perf_analyzer on PATH"):
        find_perf_analyzer()
    placeholder = tmp_path / "perf_analyzer"
    placeholder.write_text("")
    placeholder.chmod(0o755)
    with pytest.raises(ServingError, match=r"cannot be used: .*; the wheel of tritonclient 2.51"):
        find_perf_analyzer()


HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,"
    "Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,"
    "p90 latency,p95 latency,p99 latency,Avg latency,request/response,response wait"
)
FIGURES = "4,5669.22,43,192,181,32,189,57,0,670,911,1002,1241,697,43,648"


def stand_in(folder, lines):
    """A program that leaves perf_analyzer's report, in the way the script says."""
    path = folder / "perf_analyzer"
    report = f"cat > \"$report\" <<'END'\n{HEADER}\n{FIGURES}\nEND\n"
    find = 'while [ "$1" ]; do [ "$1" = -f ] && report=$2; shift; done\n'
    path.write_text(f'#!/bin/sh\nall="$*"\n{find}{lines.replace("REPORT", report)}')
    path.chmod(0o755)
    return PerfAnalyzer(path, "", "stand-in")


ENDPOINT = Endpoint(Protocol.HTTP, "127.0.0.1:1", "fake")


def test_perf_analyzer_figures_land_in_the_records(tmp_path):
    analyzer = stand_in(tmp_path, "REPORT\necho '    Request count: 17000'\n")
    found = run_perf_analyzer(analyzer, ENDPOINT, tokens(), 4)
    assert found.driver == "perf_analyzer"
    assert found.throughput_per_s == 5669.22
    assert found.requests == 17000
    assert found.latency.p99_s == pytest.approx(1241e-6)
    assert sum(vars(found.breakdown).values()) == pytest.approx(697e-6)
    assert found.marks == ()


def test_perf_analyzer_that_gets_no_stable_level_is_marked(tmp_path):
    failing = "echo Failed to obtain stable measurement; exit 2"
    lines = f'case "$all" in *1000000.0*) REPORT\n;; *) {failing};; esac\n'
    found = run_perf_analyzer(stand_in(tmp_path, lines), ENDPOINT, tokens(), 4)
    assert found.marks == ("unstable: perf_analyzer saw no three windows agree",)


def test_perf_analyzer_that_fails_is_quoted(tmp_path):
    analyzer = stand_in(tmp_path, "echo failed to get model metadata; exit 1\n")
    with pytest.raises(ServingError, match=r"(?s)status 1 and no figures.*model metadata"):
        run_perf_analyzer(analyzer, ENDPOINT, tokens(), 4)
