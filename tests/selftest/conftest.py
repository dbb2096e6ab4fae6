"""Projects to run the plugin in, with a tiny model and a backend that can be spoiled."""

import shutil
from pathlib import Path
from typing import Any

import pytest

# Loaded before any run inside this process, which unloads only what it loaded itself.
import enginegate.engines.onnxruntime
import enginegate.engines.openvino
import enginegate.session  # noqa: F401

HERE = Path(__file__).parent
PYPROJECT = """
[tool.enginegate]
backend = "faulty"
engine_cache = "cache"
batches = [1, 4]
replicates = 3
measure_s = 0.15
[tool.enginegate.models.tiny]
onnx = "tiny.onnx"
vocab_size = 200
seq_len = 8
[tool.pytest.ini_options]
pythonpath = ["."]
"""
CONFTEST = """
import pytest
from enginegate.engines import register
from enginegate.timing import Pair
from faulty import FaultyEngine
register("faulty", "faulty:Faulty")

@pytest.fixture(scope="session")
def pairs(pairs):  # the reference gets the same scale of time, and no fault
    return tuple(Pair(p.candidate, FaultyEngine(p.reference, "")) for p in pairs)
"""


@pytest.fixture(scope="session")
def torch_loaded():
    """Load torch once for all runs inside this process: it cannot be unloaded and loaded again."""
    import sentence_transformers  # noqa: F401
    import torch.onnx._internal.exporter  # noqa: F401
    from transformers import AutoConfig, AutoModel, AutoTokenizer  # noqa: F401


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


@pytest.fixture
def tiny_onnx(tmp_path, load_tiny):
    return load_tiny.write_tiny_onnx(tmp_path / "tiny.onnx")


@pytest.fixture(scope="session")
def load_tiny():
    """The module tiny.py beside this file, whatever the import mode."""
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("enginegate_selftest_tiny", HERE / "tiny.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fill_disk(monkeypatch):
    """Call it, and every atomic write from then on finds the disk full."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    return lambda: monkeypatch.setattr("enginegate.files.os.fsync", full)


@pytest.fixture
def project(pytester, load_tiny, monkeypatch):
    """A user's project with one tiny model; `project.judge(...)` runs the ready suite in it."""
    monkeypatch.delenv("PLANTED_FAULT", raising=False)
    load_tiny.write_tiny_onnx(pytester.path / "tiny.onnx")
    shutil.copy(HERE / "faulty.py", pytester.path)
    pytester.makeconftest(CONFTEST)
    pytester.makepyprojecttoml(PYPROJECT)
    for name in ("test_accuracy", "test_throughput"):
        source = HERE.parent / f"{name}.py"
        shutil.copy(source, pytester.path)
    return Project(pytester, monkeypatch)


class Project:
    def __init__(self, pytester, monkeypatch):
        self.path = pytester.path
        self._pytester, self._monkeypatch = pytester, monkeypatch

    def plant(self, fault):
        self._monkeypatch.setenv("PLANTED_FAULT", fault)

    def judge(self, *arguments):
        return self._pytester.runpytest_inprocess("--precision", "fp32", *arguments)

    def run(self, *arguments):
        return self._pytester.runpytest_inprocess(*arguments)

    def baseline(self):
        (path,) = self.path.glob("baselines/*/tiny.json")
        return path

    def write(self, name, text):
        (self.path / name).write_text(text)
        return self.path / name
