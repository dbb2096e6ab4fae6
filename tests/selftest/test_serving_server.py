"""The server and its environment, with a script that stands in for tritonserver."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enginegate.errors import ServingError
from enginegate.serving import environment as environments
from enginegate.serving import server as servers
from enginegate.serving import supervisor
from enginegate.serving.environment import (
    ServerEnvironment,
    check_environment,
    server_environment,
)
from enginegate.serving.server import serve
from enginegate.store import Store

DEADLINE_S = 20.0  # of what happens in a fraction of a second on a quiet machine

FAKE = """#!{python}
import http.server, json, os, pathlib, signal, sys
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
behaviour = pathlib.Path(__file__).with_name("behaviour").read_text()
pathlib.Path("/dev/shm", options["id"] + "-segment").write_text("left behind")
if behaviour == "dies":
    print("E1124 06:45:41.1 7 server.cc:241] \\"CudaDriverHelper has not been initialized.\\"")
    print('E1124 06:45:41.2 7 x.cc:1] "failed to load it: no such file\\\\n\\\\nAt:\\\\n  f(1)"')
    sys.exit(1)
if behaviour == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"name": options["id"]}}).encode()
        self.send_response(400 if behaviour == "slow" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
try:
    server = http.server.HTTPServer((options["http-address"], int(options["http-port"])), Handler)
except OSError:
    print("Socket already in use")
    sys.exit(1)
print("serving", flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def quiet(_task):
    yield


@pytest.fixture
def fake(tmp_path):
    """An environment whose tritonserver is a script; `fake("dies")` says what it does."""
    environment = ServerEnvironment(tmp_path / "environment")
    stub = environment.backends / "python" / "triton_python_backend_stub"
    for path in (environment.binary, stub):
        path.parent.mkdir(parents=True)
        path.touch()
    (environment.packages / "numpy-1.26.4.dist-info").mkdir()
    environment.binary.write_text(FAKE.format(python=sys.executable))
    environment.binary.chmod(0o755)

    def behave(behaviour="good"):
        environment.binary.with_name("behaviour").write_text(behaviour)
        return environment

    return behave


def no_models(_repository):
    return []


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def leftovers(server):
    """What is still there of a server that has been stopped."""
    folder = server.repository.parent
    processes = [p for p in Path("/proc").glob("[0-9]*/cmdline") if folder.name in words_of(p)]
    segments = list(supervisor.SEGMENTS.glob(f"*{folder.name}*"))
    ports = [a for a in (server.http, server.grpc) if answers(a)]
    return [*processes, *segments, *([folder] if folder.exists() else []), *ports]


def words_of(cmdline):
    try:
        return cmdline.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def answers(address):
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def wait_until(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


class TestServer:
    def test_starts_answers_and_leaves_nothing(self, fake):
        with serve(fake(), no_models, quiet) as server:
            assert answers(server.http)
            assert "serving" in server.log_tail()
            assert leftovers(server)
        assert leftovers(server) == []

    def test_ends_with_the_block_that_raises(self, fake):
        with pytest.raises(ZeroDivisionError), serve(fake(), no_models, quiet) as server:
            raise ZeroDivisionError
        assert leftovers(server) == []

    def test_a_server_that_ignores_interrupts_is_killed(self, fake, monkeypatch):
        monkeypatch.setattr(servers, "_STOP_WAIT_S", 0.3)
        with serve(fake("stubborn"), no_models, quiet) as server:
            pass
        assert leftovers(server) == []

    def test_two_at_once_have_nothing_in_common(self, fake):
        with serve(fake(), no_models, quiet) as one, serve(fake(), no_models, quiet) as other:
            assert len({one.http, one.grpc, other.http, other.grpc}) == 4
            assert one.repository != other.repository
        assert leftovers(one) + leftovers(other) == []

    def test_reason_of_a_server_that_dies(self, fake):
        with pytest.raises(ServingError) as caught, serve(fake("dies"), no_models, quiet):
            pass
        assert str(caught.value) == (
            "the server ended with status 1. Its log says: failed to load it: no such file"
        )

    def test_slow_start_is_one_error_in_time(self, fake, monkeypatch):
        seen = seen_servers(monkeypatch)
        start = time.monotonic()
        with (
            pytest.raises(ServingError, match=r"not ready in 0.5 s; .*\nserving"),
            serve(fake("slow"), no_models, quiet, timeout_s=0.5),
        ):
            pass
        assert time.monotonic() - start < DEADLINE_S
        assert leftovers(seen[0]) == []

    def test_killed_meanwhile_says_so(self, fake):
        with serve(fake(), no_models, quiet) as server:
            server.check_alive()
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(ServingError, match="ended with status -9"):
                wait_until(server.check_alive)
        assert leftovers(server) == []

    def test_a_taken_port_is_tried_again_elsewhere(self, fake, monkeypatch):
        with taken_port() as port:
            free_ports_after([(port, port)], monkeypatch)
            with serve(fake(), no_models, quiet) as server:
                assert server.http != f"127.0.0.1:{port}"
        assert leftovers(server) == []

    def test_ports_always_taken(self, fake, monkeypatch):
        words = "took the server's ports 4 times"
        with taken_port() as port:
            free_ports_after([(port, port)] * 9, monkeypatch)
            with pytest.raises(ServingError, match=words), serve(fake(), no_models, quiet):
                pass

    def test_another_server_on_the_port_is_not_taken_for_it(self, fake, monkeypatch):
        """A ready server answers there, but it is not the one that was started."""
        with serve(fake(), no_models, quiet) as other:
            port = int(other.http.split(":")[1])
            free_ports_after([(port, port)], monkeypatch)
            with serve(fake(), no_models, quiet) as server:
                assert server.http != other.http

    def test_killed_supervisor_leaves_nothing_either(self, fake):
        with serve(fake(), no_models, quiet) as server:
            os.kill(server._supervisor._process.pid, signal.SIGKILL)
            wait_until(lambda: not is_running(server.pid))
        assert leftovers(server) == []

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_nothing_is_left_of_a_killed_owner(self, fake, number):
        with owner_of(fake()) as (process, server):
            assert is_running(server.pid)
            process.send_signal(number)
            process.wait()
            wait_until(lambda: leftovers(server) == [])


def first_line(process):
    """What it prints first."""
    assert process.stdout
    return process.stdout.readline()


OWNER = """
import contextlib, json, sys, time
from pathlib import Path
from enginegate.serving.environment import ServerEnvironment
from enginegate.serving.server import serve
quiet = lambda task: contextlib.nullcontext()
with serve(ServerEnvironment(Path(sys.argv[1])), lambda root: [], quiet) as s:
    print(json.dumps([str(s.repository), s.http, s.grpc, s.pid]), flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def owner_of(environment):
    """A process that serves, and its server."""
    command = [sys.executable, "-c", OWNER, str(environment.folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            repository, http_address, grpc, pid = json.loads(first_line(process))
            owner: Any = process
            yield process, servers.Server(Path(repository), http_address, grpc, pid, owner)
        finally:
            process.kill()


@contextlib.contextmanager
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def free_ports_after(first, monkeypatch):
    waiting, really = list(first), servers.free_ports
    monkeypatch.setattr(servers, "free_ports", lambda: waiting.pop(0) if waiting else really())


def seen_servers(monkeypatch):
    """Every server that is waited for, also one that never gets ready."""
    seen, really = [], servers._is_ready

    def watch(server, *others):
        seen.append(server)
        return really(server, *others)

    monkeypatch.setattr(servers, "_is_ready", watch)
    return seen


class TestEnvironment:
    def test_missing_program(self, fake):
        fake().binary.unlink()
        with pytest.raises(ServingError, match=r"broken \(.*bin/tritonserver is missing\); delete"):
            check_environment(fake())

    def test_numpy_2(self, fake):
        (fake().packages / "numpy-1.26.4.dist-info").rename(
            fake().packages / "numpy-2.1.0.dist-info"
        )
        with pytest.raises(ServingError, match=r"broken \(numpy 2.1.0, where .* needs numpy 1\)"):
            check_environment(fake())

    def test_two_numpys(self, fake):
        (fake().packages / "numpy-2.1.0.dist-info").mkdir()
        with pytest.raises(ServingError, match=r"numpy 1.26.4, 2.1.0, where"):
            check_environment(fake())

    def test_no_server_is_started_from_a_broken_one(self, fake):
        fake().binary.unlink()
        with pytest.raises(ServingError, match="is broken"), serve(fake(), no_models, quiet):
            pass

    def test_what_pip_said(self, tmp_path, monkeypatch):
        monkeypatch.setattr(environments, "_NUMPY", "no such requirement <")
        with pytest.raises(ServingError, match=r"failed\. Give pip access(.|\n)*requirement"):
            server_environment(Store(tmp_path), quiet)
        assert not list(tmp_path.glob("server/*/*"))

    def test_same_versions_as_here(self):
        import onnxruntime

        assert f"onnxruntime=={onnxruntime.__version__}" in environments._same_runtimes()

    def test_python_without_a_stub(self, tmp_path):
        stub = tmp_path / environments._STUBS / "3.8" / "triton_python_backend_stub"
        stub.parent.mkdir(parents=True)
        stub.touch()
        with pytest.raises(ServingError, match=r"it has stubs for 3\.8; run pytest in one"):
            environments._backend_files(tmp_path)
