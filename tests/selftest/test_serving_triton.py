"""A real tritonserver with the tiny model: it serves, it is right, it fails well, it goes."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginegate.cache import Entry
from enginegate.config.serving import Deployment, Protocol
from enginegate.engines.build import Built
from enginegate.engines.registry import REGISTERED, Registration, get_backend
from enginegate.errors import ServingError
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.workload import take
from enginegate.serving.agreement import check_served, expected_embeddings
from enginegate.serving.load.embed import embed_served
from enginegate.serving.served import ServedEngine
from enginegate.serving.triton import repository as repositories
from enginegate.serving.triton import server as servers
from enginegate.serving.triton import supervisor
from enginegate.serving.triton.client import check_model, deployment_of, statistics
from enginegate.serving.triton.environment import ServerEnvironment
from enginegate.serving.triton.repository import served_as, write_engine, write_reference
from enginegate.serving.triton.server import serve
from enginegate.variants import Precision, Variant

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("triton")]

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
DEPLOYMENT = Deployment(max_batch_size=8, preferred_batch_sizes=(4,), max_queue_delay_us=2000)
DEADLINE_S = 120.0  # of what takes seconds on a quiet machine


@contextlib.contextmanager
def quiet(_task):
    yield


@pytest.fixture(scope="module")
def environment(server_packages):
    return server_packages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def tiny(folder, load_tiny):
    onnx = load_tiny.write_tiny_onnx(folder / "tiny.onnx")
    spec = ModelSpec("tiny", Kind.ONNX, str(onnx), seq_len=8, vocab_size=200)
    roles = dict(zip(INPUTS, ("ids", "mask"), strict=True))
    return Exported(spec, onnx, "0", "seeded", None, roles, OUTPUT)


@pytest.fixture(scope="module")
def batch():
    ids = np.random.default_rng(0).integers(1, 200, (64, 8))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture(scope="module")
def built(tiny, batch, folder):
    target = folder / "built"
    target.mkdir()
    properties = get_backend("openvino").build(tiny, Precision.FP32, batch, target)
    variant = Variant("tiny", "openvino", Precision.FP32)
    return Built(variant, Precision.FP32, "openvino", Entry(target, properties))


@pytest.fixture(scope="module")
def expected(built, batch):
    """The embeddings of the engine in this process."""
    load = get_backend(built.backend).load
    with load(built.entry.folder, built.entry.properties, probe_of(batch), 1) as engine:
        return expected_embeddings(engine, batch, DEPLOYMENT.max_batch_size)


@pytest.fixture(scope="module")
def write(tiny, built, batch):
    """Writes the engine as `tiny`."""

    def write_tiny(root):
        write_engine(root, served_as("tiny", tiny, batch, 16, DEPLOYMENT), built, probe_of(batch))
        return ["tiny"]

    return write_tiny


@pytest.fixture(scope="module")
def server(environment, tiny, batch, write):
    """With the engine, as `tiny`, and the reference; it finds modules that lie beside this one."""

    def write_both(root):
        served = served_as("reference", tiny, batch, 16, DEPLOYMENT)
        write_reference(root, served, tiny, probe_of(batch))
        return [*write(root), "reference"]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        with serve(environment, write_both, quiet) as running:
            yield running


def probe_of(batch):
    return take(batch, slice(2))


def leftovers(repository):
    """What is still there of a server that has been stopped, by the name of its folder."""
    folder = repository.parent
    processes = [p for p in Path("/proc").glob("[0-9]*/cmdline") if folder.name in words_of(p)]
    segments = supervisor.SEGMENTS.glob(f"*{folder.name}*")
    return [*processes, *segments, *([folder] if folder.exists() else [])]


def words_of(cmdline):
    try:
        return cmdline.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()


@pytest.mark.parametrize("protocol", Protocol)
class TestServes:
    @pytest.mark.parametrize("model", ["tiny", "reference"])
    def test_what_is_tested(self, server, protocol, model, batch, expected):
        endpoint = server.endpoint(model, protocol)
        assert check_model(endpoint, INPUTS, OUTPUT, 8, 16) == DEPLOYMENT
        served = embed_served(endpoint, batch, OUTPUT, 8)
        assert check_served(served, expected) <= expected.tolerance

    def test_in_batches_that_it_counts(self, server, protocol, batch):
        endpoint = server.endpoint("tiny", protocol)
        before = statistics(endpoint)
        embed_served(endpoint, batch, OUTPUT, 8)
        wait_until(lambda: statistics(endpoint).success.count >= before.success.count + 64)
        counted = statistics(endpoint).since(before)
        assert (counted.success.count, counted.fail.count) == (64, 0)
        assert sum(size * count for size, count in counted.batches.items()) == 64
        assert max(counted.batches) > 1
        assert counted.compute_infer.mean_s > 0

    def test_wrong_names_and_widths_are_seen(self, server, protocol):
        endpoint = server.endpoint("tiny", protocol)
        with pytest.raises(ServingError, match="has no output 'pooled', but sentence_embedding"):
            check_model(endpoint, INPUTS, "pooled", 8, 16)
        with pytest.raises(ServingError, match="of width 16, not 8"):
            check_model(endpoint, INPUTS, OUTPUT, 8, 8)
        with pytest.raises(ServingError, match="needs an input 'attention_mask' that was not"):
            check_model(endpoint, INPUTS[:1], OUTPUT, 8, 16)

    def test_a_model_that_is_not_there(self, server, protocol):
        with pytest.raises(ServingError, match=r"model other on .* is not ready; load it"):
            check_model(server.endpoint("other", protocol), INPUTS, OUTPUT, 8, 16)
        with pytest.raises(ServingError, match="'other' is not available"):
            statistics(server.endpoint("other", protocol))

    def test_a_request_that_fails_says_why(self, server, protocol, batch):
        bad = {**take(batch, slice(1)), "input_ids": np.full((1, 8), 999)}  # beyond the vocabulary
        with pytest.raises(ServingError, match=r"tiny on .*999|indices|bounds|Gather"):
            embed_served(server.endpoint("reference", protocol), bad, OUTPUT, 1)

    def test_one_that_fails_does_not_spoil_the_others(self, server, protocol, batch, expected):
        """All in one batch of the server: the bad one alone is answered with an error."""
        from concurrent.futures import ThreadPoolExecutor

        endpoint = server.endpoint("reference", protocol)
        rows = [take(batch, slice(row, row + 1)) for row in range(4)]
        rows[2] = {**rows[2], "input_ids": np.full((1, 8), 999)}
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(embed_served, endpoint, row, OUTPUT, 1) for row in rows]
        assert [task.exception() is None for task in asked] == [True, True, False, True]
        assert np.allclose(asked[3].result()[0], expected.embeddings[3], atol=1e-4)


class TestLoading:
    def test_unload_and_load_again(self, server, batch, expected):
        endpoint = server.endpoint("tiny")
        server.unload("tiny")
        with pytest.raises(ServingError, match="is not ready"):
            check_model(endpoint, INPUTS, OUTPUT, 8, 16)
        server.load("tiny")
        check_served(embed_served(endpoint, batch, OUTPUT, 8), expected)

    def test_a_model_added_while_it_runs(self, server, tiny, batch, built):
        served = served_as("late", tiny, batch, 16, Deployment(max_batch_size=2))
        write_engine(server.repository, served, built, probe_of(batch))
        server.load("late")
        assert deployment_of(server.endpoint("late")).max_batch_size == 2
        server.unload("late")

    def test_one_that_does_not_load_says_why_and_others_go_on(
        self, server, tiny, batch, built, expected
    ):
        served = served_as("broken", tiny, batch, 16, DEPLOYMENT)
        write_engine(server.repository, served, built, probe_of(batch))
        (server.repository / "broken" / "1" / "engine" / "engine.blob").write_bytes(b"no blob")
        with pytest.raises(
            ServingError, match=r"cannot load broken\. .*EngineError: OpenVINO cannot load"
        ):
            server.load("broken")
        check_served(embed_served(server.endpoint("tiny"), batch, OUTPUT, 8), expected)


class TestOwnBackend:
    def test_registered_in_a_conftest(self, server, tiny, batch, built, expected, monkeypatch):
        monkeypatch.setitem(REGISTERED, "own", Registration(OWN, (), ""))
        onnx = built.entry.folder.with_name("own")
        onnx.mkdir()
        properties = get_backend("own").build(tiny, Precision.FP32, batch, onnx)
        own = dataclasses.replace(built, backend="own", entry=Entry(onnx, properties))
        served = served_as("own", tiny, batch, 16, DEPLOYMENT)
        write_engine(server.repository, served, own, probe_of(batch))
        server.load("own")
        check_served(embed_served(server.endpoint("own"), batch, OUTPUT, 8), expected)
        server.unload("own")


OWN = "faulty:Faulty"


class TestEnds:
    def test_nothing_is_left_and_another_goes_on(self, server, environment, write, batch, expected):
        with serve(environment, write, quiet) as other:
            assert len(leftovers(other.repository)) > 3  # folder, server, stub, segments
            for one in (server, other):
                served = embed_served(one.endpoint("tiny"), batch, OUTPUT, 8)
                check_served(served, expected)
        assert leftovers(other.repository) == []
        check_served(embed_served(server.endpoint("tiny"), batch, OUTPUT, 8), expected)

    def test_killed_while_it_serves(self, environment, write, batch, monkeypatch):
        monkeypatch.setattr("enginegate.serving.load.transport._CONNECT_S", 0.5)  # in vain
        with serve(environment, write, quiet) as server:
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(
                ServingError, match=r"cannot connect to unix:.*; is it serving gRPC\?"
            ):
                embed_served(server.endpoint("tiny"), batch, OUTPUT, 8)
            with pytest.raises(ServingError, match="the server ended with status -9"):
                wait_until(server.check_alive)
        assert leftovers(server.repository) == []

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_with_its_killed_owner(self, environment, write, tmp_path, number):
        write(tmp_path)
        with owner_of(environment, tmp_path) as (process, repository):
            assert len(leftovers(repository)) > 3
            process.send_signal(number)
            process.wait(DEADLINE_S)
            wait_until(lambda: leftovers(repository) == [])


def first_line(process):
    """What it prints first."""
    assert process.stdout
    return process.stdout.readline()


OWNER = """
import contextlib, shutil, sys
from pathlib import Path
from enginegate.serving.triton.environment import ServerEnvironment
from enginegate.serving.triton.server import serve
def write(root):
    shutil.copytree(sys.argv[2], root, dirs_exist_ok=True)
    return ["tiny"]
quiet = lambda task: contextlib.nullcontext()
with serve(ServerEnvironment(Path(sys.argv[1])), write, quiet) as server:
    print(server.repository, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def owner_of(environment, models):
    """A process that serves, and the repository of its server."""
    command = [sys.executable, "-c", OWNER, str(environment.folder), str(models)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield process, Path(first_line(process).strip())
        finally:
            process.kill()


class TestFaults:
    def test_model_that_does_not_load_at_the_start(self, environment, write):
        def spoil(root):
            names = write(root)
            (root / "tiny" / "1" / "engine.json").unlink()
            return names

        words = "status 1. Its log says: failed to load 'tiny' .*FileNotFoundError.*engine.json"
        with pytest.raises(ServingError, match=words), serve(environment, spoil, quiet):
            pass

    def test_slow_start(self, environment, write):
        def stall(root):
            names = write(root)
            model = root / "tiny" / "1" / "model.py"
            model.write_text("import time\ntime.sleep(600)\n" + model.read_text())
            return names

        with (
            pytest.raises(ServingError, match=r"not ready in 0\.5 s"),
            serve(environment, stall, quiet, timeout_s=0.5),
        ):
            pass

    def test_taken_port(self, server, environment, monkeypatch):
        """With no models, which are loaded before the port is taken."""
        really, taken = servers.free_port, [int(server.http.split(":")[1])]
        monkeypatch.setattr(servers, "free_port", lambda: taken.pop() if taken else really())
        with serve(environment, lambda _root: [], quiet) as moved:
            assert not taken
            assert {moved.http, moved.grpc}.isdisjoint({server.http, server.grpc})


@pytest.fixture(scope="module")
def numpy_2(environment, folder):
    """The server's environment with this process's numpy in it, while it says numpy 1."""
    lying = ServerEnvironment(folder / "environment")
    shutil.copytree(environment.folder, lying.folder, symlinks=True, copy_function=os.link)
    here = Path(np.__file__).parent
    for name in ("numpy", "numpy.libs"):
        shutil.rmtree(lying.packages / name)
        (lying.packages / name).symlink_to(here.with_name(name))
    return lying


@pytest.mark.skipif(np.__version__.startswith("1."), reason="needs numpy 2 here")
class TestNumpy2:
    def test_the_model_refuses(self, numpy_2, write):
        words = r"RuntimeError: numpy 2.* in the server: .* answers wrong values"
        with pytest.raises(ServingError, match=words), serve(numpy_2, write, quiet):
            pass

    def test_without_the_refusal_the_embeddings_are_wrong_and_seen(
        self, numpy_2, write, tmp_path, monkeypatch, batch, expected
    ):
        trusting = tmp_path / "model.py"
        text = repositories._MODEL.read_text().replace("        _refuse_numpy_2()\n", "")
        trusting.write_text(text)
        monkeypatch.setattr(repositories, "_MODEL", trusting)
        with serve(numpy_2, write, quiet) as server:
            for protocol in Protocol:
                endpoint = server.endpoint("tiny", protocol)
                assert check_model(endpoint, INPUTS, OUTPUT, 8, 16) == DEPLOYMENT
                with pytest.raises(ServingError, match="numpy 2 in the server's environment"):
                    check_served(embed_served(endpoint, batch, OUTPUT, 8), expected)
            os.kill(server.pid, signal.SIGKILL)  # its models would take seconds to go


def test_every_replicate_loads_the_models_anew(server):
    """Triton leaves a loaded model as it is when it is told to load it: it has to go first."""
    fields: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(ServedEngine))
    served = ServedEngine(**fields | {"server": server, "timeout_s": DEADLINE_S})
    before = server.log().count("successfully loaded 'reference'")
    served.load_anew(["reference", "tiny"])
    assert server.log().count("successfully loaded 'reference'") == before + 1
    assert statistics(server.endpoint("tiny")).success.count == 0
