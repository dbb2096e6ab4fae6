"""The server, with a script that stands in for tritonserver."""

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
from tests.selftest.fake_server import no_models, quiet, stand_in

from enginegate.errors import ServingError
from enginegate.serving.triton import server as servers
from enginegate.serving.triton import supervisor
from enginegate.serving.triton.server import is_port_taken, serve

DEADLINE_S = 120.0  # of what happens in a fraction of a second on a quiet machine


@pytest.fixture
def fake(tmp_path):
    return stand_in(tmp_path)


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
    ports = [server.http] if answers(server.http) else []
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

    def test_a_model_that_failed_to_start_is_no_taken_port(self, fake, monkeypatch):
        seen = seen_servers(monkeypatch)
        words = "status 1. Its log says: failed to load it: failed to start, GPU already in use"
        with (
            pytest.raises(ServingError, match=words),
            serve(fake("failed to start"), no_models, quiet),
        ):
            pass
        assert len(seen) == 1

    @pytest.mark.parametrize("fault", ["no program", "no permission"])
    def test_a_program_that_cannot_be_run(self, fake, fault):
        binary = fake().binary
        if fault == "no program":
            binary.write_bytes(b"\x7fELF of another machine")
        else:
            binary.chmod(0o644)
        words = r"program cannot be run: \[Errno \d+\] .*bin/tritonserver'; see that it is made"
        with pytest.raises(ServingError, match=words), serve(fake(), no_models, quiet):
            pass

    def test_a_supervisor_killed_before_the_start(self):
        with servers._supervised() as owner:
            owner._process._process.kill()
            owner._process._process.wait()
            with pytest.raises(ServingError, match="supervisor ended with status -9; see what it"):
                owner.start(["tritonserver"], {})
        assert not owner.folder.exists()

    def test_slow_start_is_one_error_in_time(self, fake, monkeypatch):
        seen = seen_servers(monkeypatch)
        with (
            pytest.raises(ServingError, match=r"not ready in 0.5 s; .*\n"),
            serve(fake("slow"), no_models, quiet, timeout_s=0.5),
        ):
            pass
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
            free_ports_after([port], monkeypatch)
            with serve(fake(), no_models, quiet) as server:
                assert server.http != f"127.0.0.1:{port}"
        assert leftovers(server) == []

    def test_ports_always_taken(self, fake, monkeypatch):
        words = "took the server's port 4 times"
        with taken_port() as port:
            free_ports_after([port] * 9, monkeypatch)
            with pytest.raises(ServingError, match=words), serve(fake(), no_models, quiet):
                pass

    def test_another_server_on_the_port_is_not_taken_for_it(self, fake, monkeypatch):
        """A ready server answers there, but it is not the one that was started."""
        with serve(fake(), no_models, quiet) as other:
            port = int(other.http.split(":")[1])
            free_ports_after([port], monkeypatch)
            with serve(fake(), no_models, quiet) as server:
                assert server.http != other.http

    def test_killed_supervisor_leaves_nothing_either(self, fake):
        with serve(fake(), no_models, quiet) as server:
            os.kill(server._supervisor._process._process.pid, signal.SIGKILL)
            wait_until(lambda: not is_running(server.pid))
        assert leftovers(server) == []

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_nothing_is_left_of_a_killed_owner(self, fake, number):
        with owner_of(fake()) as (process, server):
            assert is_running(server.pid)
            process.send_signal(number)
            process.wait(DEADLINE_S)
            wait_until(lambda: leftovers(server) == [])


def first_line(process):
    """What it prints first."""
    assert process.stdout
    return process.stdout.readline()


OWNER = """
import contextlib, json, signal, sys
from pathlib import Path
from enginegate.serving.triton.environment import ServerEnvironment
from enginegate.serving.triton.server import serve
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
quiet = lambda task: contextlib.nullcontext()
with serve(ServerEnvironment(Path(sys.argv[1])), lambda root: [], quiet) as s:
    print(json.dumps([str(s.repository), s.http, s.grpc, s.pid]), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def owner_of(environment):
    """A process that serves, and its server."""
    command = [sys.executable, "-c", OWNER, str(environment.folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            repository, http_address, grpc, pid = json.loads(first_line(process))
            owner: Any = process
            yield process, servers.Server(Path(repository), http_address, grpc, pid, "", owner)
        finally:
            process.kill()


@contextlib.contextmanager
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def free_ports_after(first, monkeypatch):
    waiting, really = list(first), servers.free_port
    monkeypatch.setattr(servers, "free_port", lambda: waiting.pop(0) if waiting else really())


def seen_servers(monkeypatch):
    """Every server that is waited for, also one that never gets ready."""
    seen, really = [], servers._is_ready

    def watch(server, *others):
        seen.append(server)
        return really(server, *others)

    monkeypatch.setattr(servers, "_is_ready", watch)
    return seen


TRITON_2_51 = {
    "HTTP": """\
I1124 07:57:19.356546 29577 http_server.cc:4713] "Started HTTPService at 127.0.0.1:33073"
E1124 07:57:19.397717 29577 main.cc:257] "failed to start HTTP service: Unavailable - Socket \
'127.0.0.1:33073' already in use "
""",
    "gRPC": """\
E1124 07:57:19.417448404   29600 chttp2_server.cc:1060]                UNKNOWN:No address added
E1124 07:57:19.421012 29600 main.cc:245] "failed to start GRPC service: Unavailable - Socket \
'127.0.0.1:56477' already in use "
""",
}


@pytest.mark.parametrize("port", TRITON_2_51)
def test_what_triton_logs_of_a_taken_port(port):
    assert is_port_taken(TRITON_2_51[port])
    assert not is_port_taken(TRITON_2_51[port].replace(" main.cc", " model.py"))
