"""The load generator against a server that fails as planted."""

import contextlib
import os
import select
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
from tests.selftest.kserve import OUTPUT, embed, exchange, kserve

from enginegate.config.serving import Arrivals, Protocol
from enginegate.errors import ServingError
from enginegate.serving.load import generator as load
from enginegate.serving.load.exchange import INFER_METHOD
from enginegate.serving.load.generator import open_generator
from enginegate.serving.load.loops import ClosedLoop
from enginegate.serving.load.sweep import LevelRules, run_level, run_open
from enginegate.serving.load.transport import Answer, Take, open_transport
from enginegate.serving.load.windows import Fault, cut, pool

QUICK = LevelRules(warm_up_s=0.05, min_window_s=0.05, limit_s=0.8, window_requests=20, tolerance=9)
ENDLESS = replace(QUICK, limit_s=240, window_requests=1, tolerance=-1)  # until something is wrong
WINDOWS_S = (0.05, 0.2, 0.8, 3.2, 12.8)  # the first is enough unless the machine is busy
LONG_S = 60.0  # for what takes no time at all on a quiet machine


@contextlib.contextmanager
def loaded(timeout_s=LONG_S, **faults):
    with kserve(**faults) as server, alone(server.address, timeout_s=timeout_s) as generator:
        yield generator


def alone(address, protocol=Protocol.HTTP, timeout_s=LONG_S):
    """A generator with one client process."""
    return open_generator(exchange(address, protocol), timeout_s=timeout_s, most_processes=1)


def no_statistics():
    return None


def level(generator, concurrency=2, enough=20):
    """A level of more than `enough` requests, in windows as long as this machine needs for them."""
    for window_s in WINDOWS_S:
        rules = replace(QUICK, min_window_s=window_s, limit_s=16 * window_s)
        found = run_level(generator, concurrency, no_statistics, "test", rules)
        if found.requests > enough:
            break
    return found


def wrong_level(generator):
    """A level that ends only by what is wrong with it."""
    return run_level(generator, 2, no_statistics, "test", ENDLESS)


def kept(window):
    """Requests that were outstanding, in the mean: those asked for, less what preemption costs."""
    return window.throughput_per_s * window.mean_s


def test_closed_loop_keeps_so_many_outstanding():
    with loaded() as generator, generator.closed(3) as running:
        windows = [running.window(0.2) for _ in range(2)]
        while pool(windows).requests <= 20:
            windows.append(running.window(0.2))
    whole = pool(windows)
    assert whole.errors == whole.wrong == Fault()
    assert 2.5 < kept(whole) < 3.01
    assert whole.duration_s == pytest.approx(0.2 * len(windows))
    assert 0 < whole.client_share < 1.1


class Clock:
    """Stands in for the module `time`: a time that passes only where a test says so."""

    now_s = 0.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("enginegate.serving.load.loops.time", clock)
    monkeypatch.setattr("enginegate.serving.load.transport.time", clock)
    return clock


class Timed:
    """A transport whose request number i is answered after `lasting_s(i)`, by the clock.

    Each sending takes `sending_s`, and each answer waits `taking_s` to be taken.
    """

    take: Take

    def __init__(self, clock, lasting_s, sending_s=0.0, taking_s=0.0):
        self.clock, self.lasting_s = clock, lasting_s
        self.sending_s, self.taking_s = sending_s, taking_s
        self.slots = self.asked = self.answered = 0
        self.due: list[tuple[float, int]] = []

    def connect(self):
        self.slots += 1
        return self.slots

    def send(self, slot, _text):
        self.clock.now_s += self.sending_s
        self.asked += 1
        self.due.append((self.clock.now_s + self.lasting_s(self.asked), slot))

    def run(self, _wait_s):
        first = min(self.due)
        self.due.remove(first)
        self.clock.now_s = max(first[0], self.clock.now_s) + self.taking_s
        self.answered += 1
        self.take(Answer(first[1], self.clock.now_s, taking_s=self.taking_s))


def closed_loop(transport, connections):
    return ClosedLoop(transport, exchange("127.0.0.1:1"), connections, first=0, limit_s=60)


def seen_until(loop, clock, end_s):
    """The window of what the loop reports of the time from 0 on."""
    while not loop.passed(end_s):
        loop.turn()
    report = loop.report(end_s)
    return cut(np.array(report["sent"]), np.array(report["received"]), 0.0, end_s)


def test_no_connection_is_idle_and_each_answer_is_counted_once(clock):
    transport = Timed(clock, lambda number: 0.01 * (1 + number % 3))
    loop = closed_loop(transport, connections=3)
    first = seen_until(loop, clock, end_s=1.0)
    assert kept(first) == pytest.approx(3)
    assert transport.asked == transport.answered + 3
    later = loop.report(9.0)["received"]  # of what was answered while the window was waited for
    assert first.requests + len(later) == transport.answered
    assert len(loop.report(9.0)["received"]) == 0


def test_time_in_the_client_is_counted(clock):
    transport = Timed(clock, lambda _: 0.0, sending_s=0.01, taking_s=0.03)
    loop = closed_loop(transport, connections=1)
    for _ in range(5):
        loop.turn()
    assert loop.report(0)["mean_client_s"] == pytest.approx(0.04)
    assert loop.report(0)["mean_client_s"] == 0


def test_an_answer_that_waits_for_the_client_says_so(clock):
    """Two answers are there; the client is busy with the first for 50 ms."""
    taken: list[Answer] = []

    def take(answer):
        taken.append(answer)
        clock.now_s += 0.05

    with kserve() as server, open_transport(exchange(server.address), LONG_S) as transport:
        transport.take = take
        slots = [transport.connect(), transport.connect()]
        for text, slot in enumerate(slots):
            transport.send(slot, text)
            assert select.select([slot], [], [], LONG_S)[0]
        transport.run(1.0)
    first, second = taken
    assert (first.taking_s, second.taking_s) == (0, 0.05)


def test_level_is_measured_and_verified():
    with loaded() as generator:
        found = level(generator)
    assert found.concurrency == 2
    assert found.driver == "test"
    assert found.requests > 20
    assert found.throughput_per_s == pytest.approx(found.requests / found.duration_s, rel=0.3)
    assert found.breakdown is None
    assert found.latency.p50_s <= found.latency.p99_s <= found.latency.max_s


@pytest.mark.parametrize(
    ("fault", "words", "after"),
    [
        ("wrong", "differs by 1", 0),
        ("wrong", "differs by 1", 30),
        ("nan", "differs by nan", 30),
        ("short", "3 values, not 4", 0),  # each answer is as long as the first
        ("short", "3 values, not 4", 30),
        ("garbage", "no KServe answer in 5 bytes", 30),
        ("error", "HTTP/1.1 500 Internal Server Error: the instance ran out of memory", 30),
        ("drop", "connection lost", 0),
        ("drop", "connection lost", 30),
    ],
)
def test_planted_fault_is_named(fault, words, after):
    with loaded(fault=fault, after=after) as generator:
        with pytest.raises(ServingError) as caught:
            wrong_level(generator)
        assert words in str(caught.value)
        assert "at concurrency 2" in str(caught.value)


def test_silent_server_is_given_up_in_time():
    """By the client, not by who waits for the client in turn: that would be another message."""
    with loaded(timeout_s=0.3, fault="silence", after=30) as generator:
        assert_fails(generator, r"no answer in 0.3 s")


def test_server_that_nobody_runs():
    with kserve() as server:
        address = server.address
    with open_generator(exchange(address)) as generator:
        with pytest.raises(ServingError, match=r"cannot connect to 127.*is it serving"):
            level(generator)
        with pytest.raises(ServingError, match="cannot connect"):
            generator.open(100, Arrivals.CONSTANT, 0.1, 0)


def test_generator_goes_on_after_a_failed_level():
    with kserve(fault="drop", after=30) as server, alone(server.address) as generator:
        with pytest.raises(ServingError, match="connection lost"):
            wrong_level(generator)
        server.fault = ""
        assert level(generator).requests > 20


@pytest.mark.parametrize("arrivals", list(Arrivals))
def test_open_loop_sees_a_stall(arrivals):
    """What was due in its first 0.2 s, 40 of 140, waits 0.1 s at least, on any machine."""
    with loaded(after=40, stall=0.3) as generator:
        stalled = run_open(generator, 200, arrivals, 0.7, 1)
    assert stalled.requests == 140
    assert stalled.marks == ()
    assert stalled.latency.max_s >= 0.3
    assert stalled.latency.p90_s > 0.1


def test_closed_loop_hides_a_stall(clock):
    """One request of each connection sees it."""
    transport = Timed(clock, lambda number: 0.3 if number == 40 else 0.002)
    window = seen_until(closed_loop(transport, connections=1), clock, end_s=0.6)
    assert window.latency.p90_s == pytest.approx(0.002)
    assert window.latency.max_s == pytest.approx(0.3)


def test_open_loop_counts_what_was_never_answered():
    """Ten; a few more where the machine is too busy to answer the others in the time given."""
    for timeout_s in (0.3, 3.0, 30.0):
        with loaded(timeout_s=timeout_s, fault="silence", after=10) as generator:
            found = generator.open(50, Arrivals.CONSTANT, 0.4, 1)
        assert found.unanswered >= 10
        if found.unanswered == 10:
            break
    assert found.unanswered == 10
    assert len(found.latencies_s) == found.requests == 20
    assert len(found.latencies_from_send_s) == 10
    assert (found.latencies_s >= timeout_s).sum() >= 10


def test_open_loop_says_when_requests_waited_for_a_connection():
    with loaded(after=5, stall=0.3) as generator:
        found = generator.open(100, Arrivals.CONSTANT, 0.5, 1, most_connections=2)
    assert found.held
    assert found.unanswered == 0
    assert len(found.latencies_s) == len(found.latencies_from_send_s) == 50
    # 30 were due in the stall, all but two waited for its end: 4 s together
    assert found.latencies_s.sum() - found.latencies_from_send_s.sum() > 2


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
    assert 2.5 < kept(window) < 3.01
    assert window.wrong == Fault()
    assert opened.requests == len(opened.latencies_s) == 30


@pytest.fixture
def probes(monkeypatch):
    """How many client processes ran in each probe."""
    seen, really = [], load.ClosedLevel.window

    def window(level, time_s):
        if time_s == load._PROBE_S:
            seen.append(len(level.clients))
        return really(level, time_s)

    monkeypatch.setattr(load, "_PROBE_S", 0.01)
    monkeypatch.setattr(load.ClosedLevel, "window", window)
    return seen


@pytest.mark.parametrize(("enough", "processes"), [(9, [1, 1]), (-1, [1, 2])])
def test_each_concurrency_is_probed_once(probes, monkeypatch, enough, processes):
    """Idle clients: one probe of 2 and one of 3. Busy ones: one probe a process, up to all."""
    monkeypatch.setattr(load, "_ENOUGH_SHARE", enough)
    with (
        kserve() as server,
        open_generator(exchange(server.address), most_processes=3) as generator,
    ):
        for concurrency in (2, 3, 2, 3, 1):
            with generator.closed(concurrency) as running:
                assert running.window(0.05).errors == Fault()
    assert probes == processes


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
        end = time.monotonic() + LONG_S
        while is_running(client) and time.monotonic() < end:
            time.sleep(0.02)
    assert not is_running(client)


KILLED = textwrap.dedent(
    """
    import sys, time
    from tests.selftest.kserve import exchange
    from enginegate.serving.load.generator import open_generator
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
        wrong_level(generator)


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
