"""Projects to run the plugin in, with a tiny model and a backend that can be spoiled."""

import contextlib
import functools
import gc
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two processors

import jsonschema  # noqa: F401
import numpy.fft  # noqa: F401
import pytest
import scipy.stats  # noqa: F401 - numpy loads once, and a test in this process forgets
import vl_convert  # noqa: F401
from _pytest.pytester import SysModulesSnapshot

import enginegate.engines.onnxruntime
import enginegate.engines.openvino
import enginegate.models.rewrite
import enginegate.serving.measure
import enginegate.session  # noqa: F401
from enginegate.config import join_values

# Loaded before any run inside this process, which unloads only what it loaded itself; what is
# patched in a module that was loaded anew would not be in force, loading takes long, and numpy.fft
# cannot be loaded twice.

HERE = Path(__file__).parent
PYPROJECT = """
[tool.enginegate]
backend = "faulty"
engine_cache = "cache"
batches = [1, 4]
replicates = 4
measure_s = 4
max_time_per_variant = 600
max_slowdown = 0.1
[tool.enginegate.models.tiny]
onnx = "tiny.onnx"
vocab_size = 200
seq_len = 8
[tool.pytest.ini_options]
pythonpath = ["."]
"""
EXPORTERS = ("onnx", "onnx_ir", "onnxscript", "sentence_transformers", "torch", "transformers")
TIMED = ("engines.measure", "speed.arms", "speed.timing", "session", "session.recorder")
CONFTEST = """
import contextlib
import dataclasses
import os

import pytest
from enginegate.engines import register
from faulty import FaultyEngine
register("faulty", "faulty:Faulty")

@pytest.fixture(scope="session")
def rig(rig):  # the yardstick gets the same scale of time, and a fault only where one is planted
    @contextlib.contextmanager
    def open_arms(batches, rng):
        with rig.open_arms(batches, rng) as arms:
            yield {name: spoiled(name, arm) for name, arm in arms.items()}
    return dataclasses.replace(rig, open_arms=open_arms)

def spoiled(name, arm):
    if name == "candidate" or not hasattr(arm, "engine"):
        return arm
    fault = os.environ.get("PLANTED_SENTINEL", "") if name == "sentinel" else ""
    return dataclasses.replace(arm, engine=FaultyEngine(unspoiled(arm.engine), fault))

def unspoiled(engine):
    return engine.engine if isinstance(engine, FaultyEngine) else engine
"""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """What takes long begins first: else one worker ends long after the other.

    What needs torch runs in one worker, which loads and exports once; xdist begins with groups.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if "torch_loaded" in item.fixturenames and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("cases"))


@pytest.fixture(scope="session")
def torch_loaded():
    """Load torch once for all runs inside this process: it cannot be unloaded and loaded again."""
    import sentence_transformers  # noqa: F401
    import torch
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    from transformers import AutoConfig, AutoModel, AutoTokenizer  # noqa: F401

    # every export makes this table of operators anew, which takes it a second
    once = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    ONNXRegistry.from_torchlib = once  # type: ignore[method-assign]
    plain = torch.nn.Linear(1, 1).eval()  # an export loads most of it late
    torch.onnx.export(plain, (torch.ones(1, 1),), dynamo=True, verbose=False)


@pytest.fixture(scope="session")
def save_small_bert(torch_loaded):
    """Write a whole transformers folder with seeded weights and no tokenizer."""

    def save(folder):
        from transformers import BertConfig, BertModel

        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
        }
        config = BertConfig(vocab_size=300, num_hidden_layers=1, **sizes)
        BertModel(config).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def shipped_distilbert(torch_loaded):
    """The shipped DistilBERT's ONNX file, in the cache of this machine: its export takes long."""
    from enginegate.cache import Store
    from enginegate.engines.onnxruntime import run_onnx
    from enginegate.files import default_cache
    from enginegate.models.export import export_model
    from enginegate.models.spec import SHIPPED

    return export_model(SHIPPED["distilbert-base-cased-96"], Store(default_cache()), run_onnx)


@pytest.fixture(scope="session")
def server_packages():
    """The server's environment from the cache of this machine, proven once: it takes seconds.

    Both workers of a run want it at once, and it takes long to make: one of them waits.
    """
    from filelock import FileLock

    from enginegate.cache import Store
    from enginegate.errors import ServingError
    from enginegate.files import default_cache
    from enginegate.serving.triton.environment import check_python, server_environment

    try:
        check_python(sys.version_info[:2])
    except ServingError as error:
        pytest.skip(str(error))
    cache = default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "selftest-server.lock"):
        return server_environment(Store(cache), lambda _task: contextlib.nullcontext())


@pytest.fixture
def tiny_onnx(tmp_path, load_tiny):
    return load_tiny.write_tiny_onnx(tmp_path / "tiny.onnx")


@pytest.fixture(scope="session")
def load_tiny():
    """The module tiny.py."""
    return _load("tiny")


@pytest.fixture(scope="session")
def layered():
    """The module layered.py."""
    return _load("layered")


def _load(name):
    """A module beside this file, whatever the import mode."""
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(
        f"enginegate_selftest_{Path(name).name}", HERE / f"{name}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def forget_machine():
    """Ask anew which machine this is."""
    from enginegate.machine.fingerprint import this_machine
    from enginegate.machine.gpus import find_gpus
    from enginegate.machine.nvml import _handle

    for asked in (find_gpus, this_machine, _handle):
        asked.cache_clear()


@pytest.fixture(autouse=True)
def only_new_garbage():
    """Have a collection look at what the test made, not at all that libraries brought."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quiet_host(monkeypatch):
    """What a host took from this machine is not the subject; test_condition.py plants it."""
    monkeypatch.setattr("enginegate.machine.condition._STAT", Path(os.devnull))
    monkeypatch.setattr("enginegate.machine.condition._CGROUP", Path(os.devnull))


FAKED = ("cuda", "tensorrt", "pycuda", "pynvml", "enginegate.engines.tensorrt")


def is_faked(module):
    return any(module == name or module.startswith(f"{name}.") for name in FAKED)


@pytest.fixture
def fake_gpu(monkeypatch):
    """A machine with a GPU, TensorRT, cuda-bindings and pycuda, all of them fake; its state."""
    for name in filter(is_faked, list(sys.modules)):  # torch with CUDA loads the real ones
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(HERE / "fake_gpu")
    import fake_device

    known = set(sys.modules)
    fake_device.reset()
    monkeypatch.setattr("enginegate.machine.gpus.load_library", fake_device.FakeDriver)
    forget_machine()
    yield fake_device.STATE
    gc.collect()
    fake_device.stacks_are_empty()
    faults = list(fake_device.STATE.faults)
    for name in filter(is_faked, set(sys.modules) - known):
        del sys.modules[name]
    forget_machine()
    assert fake_device.STATE.misused or faults == []


@pytest.fixture
def no_driver(monkeypatch):
    """A machine without a CUDA driver, also where there is one."""

    def missing():
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("enginegate.machine.gpus.load_library", missing)
    forget_machine()
    yield
    forget_machine()


@pytest.fixture
def fill_disk(monkeypatch):
    """Call it, and every atomic write from then on finds the disk full."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    return lambda: monkeypatch.setattr("enginegate.files.content.os.fsync", full)


class Clock:
    """The real clock, and all the time on top that planted work takes and nobody waits for.

    Work takes a hundred times as long as in reality, so that what other jobs add is little.
    """

    def __init__(self):
        self._skipped_s = 0.0

    def skip(self, seconds):
        self._skipped_s += 100 * seconds

    def perf_counter(self):
        return time.perf_counter() + self._skipped_s

    monotonic = perf_counter


@pytest.fixture
def keep_time(monkeypatch):
    """Give every module that reads the time another clock."""

    def keep(clock):
        for module in TIMED:
            monkeypatch.setattr(f"enginegate.{module}.time", clock)

    return keep


@pytest.fixture
def clock(keep_time):
    """Planted work takes no real time in this process, so other jobs hardly disturb the runs."""
    keep_time(Clock())


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Where projects keep what a clean run left in one of them."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="session")
def shapes(torch_loaded):
    """The module that writes small models, for the cases and others."""
    return _load("cases/shapes")


@pytest.fixture
def quick_export(shapes, monkeypatch):
    """Have models written by torch's exporter of old, for tests of what is around an export.

    It takes a tenth of the time; its files are compared with torch as any, and cached apart.
    """
    import torch

    def write(encoder, batch, path):
        tokens = tuple(map(torch.from_numpy, batch.values()))
        shapes.export(encoder, path, names=batch, output="sentence_embedding", arguments=tokens)

    monkeypatch.setattr("enginegate.models.export._write_onnx", write)
    monkeypatch.setattr("enginegate.models.sources._RECIPE", "quick")


@pytest.fixture(scope="session")
def make_case(torch_loaded, tmp_path_factory):
    """Write the project of a case from the public record or of a family; its folder.

    Each once a worker.
    """
    folder = tmp_path_factory.mktemp("cases")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE / "cases")
        families = _load("cases/families")
        names = {name: functools.partial(families.make_family, name) for name in families.FAMILIES}
        others = {**_load("cases/rerankers").RERANKERS, "splade": _load("cases/splade").make_splade}
        others |= _load("cases/colbert").COLBERTS
        makers = {**names, **others, **_load("cases/make").CASES}

    def make(name):
        if not (folder / name).exists():
            makers[name](folder / name)
        return folder / name

    return make


@pytest.fixture(scope="session")
def case_cache(tmp_path_factory):
    """The engine cache of all cases of a worker: none of them is exported or built twice."""
    return tmp_path_factory.mktemp("case-cache")


class _ExportersStay(SysModulesSnapshot):
    """Keep what a run inside this process loaded of libraries that cannot be loaded twice."""

    def restore(self):
        kept = {n: m for n, m in sys.modules.items() if n.partition(".")[0] in EXPORTERS}
        super().restore()
        sys.modules.update(kept)


@pytest.fixture
def exporters_stay(monkeypatch):
    """To be asked for before `pytester`, which forgets modules too when it ends."""
    monkeypatch.setattr("_pytest.pytester.SysModulesSnapshot", _ExportersStay)


@pytest.fixture
def judge_case(exporters_stay, make_case, case_cache, pytester, monkeypatch):
    """Run the ready suite in a case's folder, timing left out: its outcome and its report."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def judge(name, precision="fp32", *arguments):
        folder, report = make_case(name), pytester.path / "report.json"
        monkeypatch.chdir(folder)
        result = pytester.runpytest_inprocess(
            f"--rootdir={folder}",
            "--pyargs",
            "enginegate.suite",
            f"--precision={precision}",
            f"--gate-report-json={report}",
            f"--gate-engine-cache={case_cache}",
            "-k",
            "not (slower or served or load)",
            *arguments,
        )
        return result, json.loads(report.read_text()) if report.exists() else None

    return judge


@pytest.fixture
def project(pytester, load_tiny, monkeypatch, clock, kept):
    """A user's project with one tiny model; `project.judge(...)` runs the ready suite in it."""
    monkeypatch.delenv("ENGINEGATE_PLANTED_FAULT", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # a run of its own, no worker's
    monkeypatch.setattr("enginegate.speed.timing.SETTLE_S", 0.0)  # nothing here depends on caches
    monkeypatch.setattr("enginegate.speed.timing.TURN_S", 0.6)
    load_tiny.write_tiny_onnx(pytester.path / "tiny.onnx")
    shutil.copy(HERE / "faulty.py", pytester.path)
    pytester.makeconftest(CONFTEST)
    pytester.makepyprojecttoml(PYPROJECT)
    for name in ("test_accuracy", "test_throughput"):
        source = HERE.parent / f"{name}.py"
        shutil.copy(source, pytester.path)
    return Project(pytester, monkeypatch, kept)


@pytest.fixture
def gpu_project(project, fake_gpu, monkeypatch):
    """The project of one tiny model, on the fake GPU; nothing but TensorRT is loaded into it."""
    project.write("conftest.py", "")
    table = (project.path / "pyproject.toml").read_text()
    brief = table.replace("measure_s = 4\n", "measure_s = 0.04\n")  # its time is real
    brief = brief.replace("max_time_per_variant = 600", "max_time_per_variant = 6")
    project.write("pyproject.toml", brief.replace('backend = "faulty"', 'backend = "tensorrt"'))
    monkeypatch.setattr("enginegate.speed.timing.TURN_S", 0.006)
    monkeypatch.setattr("enginegate.speed.timing.WARM_UP_S", 0.001)
    return project


class Project:
    def __init__(self, pytester, monkeypatch, kept):
        self.path = pytester.path
        self._pytester, self._monkeypatch, self._kept = pytester, monkeypatch, kept

    def plant(self, fault):
        self._monkeypatch.setenv("ENGINEGATE_PLANTED_FAULT", fault)

    def plant_sentinel(self, fault):
        self._monkeypatch.setenv("PLANTED_SENTINEL", fault)

    def judge(self, *arguments):
        return self.run("--precision", "fp32", *arguments)

    def run(self, *arguments):
        # in one word each: pytester cannot take the second start that a path of its own word needs
        return self._pytester.runpytest_inprocess(*join_values(arguments))

    def fork(self, *arguments):
        return self._pytester.runpytest_subprocess(*arguments)

    def store(self, precisions="fp32"):
        """Have the engines and baselines of a clean run, which is made for the first who asks."""
        kept = self._kept / precisions
        if not kept.exists():
            assert self.run(f"--precision={precisions}", "--gate-refresh-baselines").ret == 0
            for name in ("cache", "baselines"):
                shutil.copytree(self.path / name, kept / name)
            return
        shutil.copytree(kept, self.path, dirs_exist_ok=True)

    def baseline(self):
        (path,) = self.path.glob("baselines/*/tiny.json")
        return path

    def write(self, name, text):
        (self.path / name).write_text(text)
        return self.path / name
