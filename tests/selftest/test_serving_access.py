"""The server that is started is nobody else's: attacks by another user, and from a web page."""

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.selftest import attack
from tests.selftest.fake_server import quiet

from enginegate.config.serving import Protocol
from enginegate.errors import ServingError
from enginegate.serving.load.embed import embed_served
from enginegate.serving.load.exchange import make_exchange
from enginegate.serving.load.generator import open_generator
from enginegate.serving.triton import environment as launching
from enginegate.serving.triton.access import Access, allowed, check_out_of_reach
from enginegate.serving.triton.client import deployment_of, statistics
from enginegate.serving.triton.server import serve

pytestmark = pytest.mark.xdist_group("server")

NOBODY = 65534
CONFIG = """
name: "echo" backend: "python" max_batch_size: 4
input [{ name: "ids" data_type: TYPE_INT64 dims: [4] }]
output [{ name: "embedding" data_type: TYPE_FP32 dims: [4] }]
instance_group [{ kind: KIND_CPU }]
"""
ECHO = """
import numpy as np
import triton_python_backend_utils as triton
class TritonPythonModel:
    def execute(self, requests):
        given = [triton.get_input_tensor_by_name(r, "ids").as_numpy() for r in requests]
        tensors = [triton.Tensor("embedding", ids.astype(np.float32)) for ids in given]
        return [triton.InferenceResponse([tensor]) for tensor in tensors]
"""
BATCH = {"ids": np.arange(32).reshape(8, 4)}


def write_echo(root):
    version = root / "echo" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(ECHO)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return ["echo"]


@pytest.fixture(scope="module")
def server(server_packages):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_TOKEN", "of the job")
        with serve(server_packages, write_echo, quiet) as running:
            yield running


@pytest.fixture
def marker(tmp_path):
    """A file that whoever runs code on the server writes."""
    return tmp_path / "marker"


def as_nobody(server, marker):
    """What works for another user of this machine."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    command = [sys.executable, "-I", "-S", attack.__file__, str(NOBODY)]
    arguments = [str(server.pid), server.http, str(marker)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
class TestAnotherUser:
    def test_can_do_nothing_with_what_the_process_list_tells(self, server, marker):
        assert as_nobody(server, marker) == []
        assert not marker.exists()

    def test_the_same_attack_works_on_a_server_left_open(
        self, server_packages, marker, monkeypatch
    ):
        def left_open(_access):
            return ["--grpc-address=127.0.0.1", f"--grpc-port={free_port()}"]

        monkeypatch.setattr(Access, "options", left_open)
        monkeypatch.setattr(launching, "allowed", dict)
        with serve(server_packages, write_echo, quiet) as server:
            worked = as_nobody(server, marker)
            (grpc,) = ports_of(server) - {server.http}
            assert asked_by_a_page(grpc, "get_model_repository_index").models
        assert {"loaded a model", "listed the models", "reached gRPC"} <= set(worked)
        assert marker.read_text() == str(os.geteuid())


def free_port():
    from enginegate.serving.triton.server import free_port

    return free_port()


@pytest.mark.slow
class TestAWebPage:
    """What a browser lets a foreign page send unasked, or another name for this machine."""

    @pytest.mark.parametrize(
        "path", ["/v2/repository/models/echo/unload", "/v2/models/echo/infer", "/v2/logging"]
    )
    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example", "Content-Type": "text/plain"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
        ],
    )
    def test_is_refused(self, server, path, headers):
        status, _ = ask(server, "POST", path, headers)
        assert status == 403

    def test_may_not_send_the_header(self, server):
        """A browser asks first, and wants a permission in the answer."""
        asks = {"Access-Control-Request-Headers": "enginegate-key", "Origin": "http://evil.example"}
        status, headers = ask(server, "OPTIONS", "/v2/models/echo/infer", asks)
        assert status >= 400
        assert not [name for name in headers if name.lower().startswith("access-control")]

    @pytest.mark.parametrize("method", ["get_model_repository_index", "is_server_live"])
    def test_reaches_no_grpc(self, server, method):
        """It can ask at ports alone, and there is one, of HTTP; gRPC is at a socket of files."""
        from tritonclient.utils import InferenceServerException

        assert server.grpc.startswith("unix:")
        for port in ports_of(server):
            with pytest.raises(InferenceServerException):
                asked_by_a_page(port, method)

    def test_reads_nothing(self, server):
        for path in ("/v2", "/v2/health/ready", "/v2/models/echo", "/v2/models/echo/stats"):
            assert ask(server, "GET", path, {"Host": "evil.example"})[0] == 403


def asked_by_a_page(address, method):
    """What a gRPC method answers to a web page."""
    from tritonclient import grpc

    with grpc.InferenceServerClient(address) as client:
        return getattr(client, method)(headers={"origin": "http://evil.example"}, client_timeout=20)


def ask(server, method, path, headers):
    connection = http.client.HTTPConnection(server.http, timeout=60)
    connection.request(method, path, body=b"{}" if method == "POST" else None, headers=headers)
    answer = connection.getresponse()
    connection.close()
    return answer.status, answer.headers


@pytest.mark.slow
class TestWhoStartedIt:
    @pytest.mark.parametrize("protocol", Protocol)
    def test_gets_embeddings_and_counts(self, server, protocol):
        endpoint = server.endpoint("echo", protocol)
        assert np.array_equal(embed_served(endpoint, BATCH, "embedding", 2), BATCH["ids"])
        assert deployment_of(endpoint).max_batch_size == 4
        wait_until(lambda: statistics(endpoint).success.count >= 8)  # counted after the answer

    def test_loads_and_unloads(self, server):
        server.unload("echo")
        server.load("echo")
        assert embed_served(server.endpoint("echo"), BATCH, "embedding", 1).shape == (8, 4)

    def test_load_clients_listen_nowhere_and_the_server_at_one_port(self, server):
        endpoint = server.endpoint("echo", Protocol.HTTP)
        expected = BATCH["ids"].astype(np.float32)
        exchange = make_exchange(endpoint, BATCH, "embedding", expected, 0.0)
        with open_generator(exchange) as generator, generator.closed(2) as level:
            window = level.window(0.1)
            clients = [pid for pid in processes() if parent_of(pid) == os.getpid()]
            listening = {port for pid in clients for port in listens(pid)}
        assert (window.wrong.count, window.errors.count) == (0, 0)
        assert window.requests > 0
        assert listening == set()
        assert ports_of(server) == {server.http}

    def test_hands_the_server_no_secret(self, server):
        session = [pid for pid in processes() if session_of(pid) == server.pid]
        assert len(session) > 1  # the server and its model's process
        for pid in session:
            assert b"SECRET_TOKEN" not in Path("/proc", str(pid), "environ").read_bytes()

    def test_keeps_its_files_to_itself(self, server):
        folder = server.repository.parent
        places = [folder, *attack.segments(folder.name)]
        assert len(places) > 2
        assert [oct(p.stat().st_mode) for p in places if p.stat().st_mode & 0o077] == []


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def processes():
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def stat_of(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "0", "0", "0"]


def parent_of(pid):
    return int(stat_of(pid)[1])


def session_of(pid):
    return int(stat_of(pid)[3])


def ports_of(server):
    """Addresses that a process of the server listens at."""
    session = [pid for pid in processes() if session_of(pid) == server.pid]
    return {port for pid in session for port in listens(pid)}


def listens(pid):
    """Addresses of IPv4 and IPv6 that a process listens at."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    places = [c.laddr for c in found if c.status == psutil.CONN_LISTEN]
    return {f"{place.ip.removeprefix('::ffff:')}:{place.port}" for place in places}


def test_what_a_server_is_handed():
    given = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "ENGINEGATE_MINE": "1", "LC_ALL": "C"}
    secret = {"GITHUB_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "k", "PYTHONPATH": "/x", "HF_TOKEN": ""}
    assert allowed(given | secret) == given


def test_every_server_has_its_own_key():
    one, other = Access(1, "a"), Access(1, "a")
    assert one.key != other.key
    assert one.key not in repr(one)


def test_a_temporary_folder_that_anybody_may_replace_is_refused(tmp_path):
    inside = tmp_path / "open" / "enginegate-server-x"
    inside.mkdir(parents=True)
    check_out_of_reach(inside)
    inside.parent.chmod(0o777)
    with pytest.raises(ServingError, match=r"can replace what lies in .*open, .*set TMPDIR"):
        check_out_of_reach(inside)
    inside.parent.chmod(0o1777)
    check_out_of_reach(inside)
