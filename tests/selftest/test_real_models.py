"""The shipped models with the real runtimes: what the README promises, without the timing."""

import contextlib
import dataclasses
import re
from typing import Any

import numpy as np
import openvino as ov
import pytest
from onnx import load as load_onnx

from enginegate.accuracy.deltas import compare, violations
from enginegate.accuracy.limits import DEFAULT_LIMITS, limits_for
from enginegate.cache import Store
from enginegate.config.options import Options
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine, execution_flags
from enginegate.engines.onnxruntime import run_onnx
from enginegate.engines.openvino import OpenVino
from enginegate.errors import ModelError
from enginegate.models import Kind, ModelSpec
from enginegate.models.spec import SHIPPED
from enginegate.models.workload import default_corpus, take
from enginegate.session.preparation import Preparation
from enginegate.variants import Precision, Variant

pytestmark = pytest.mark.slow
MODELS = ("distilbert-base-cased-96", "minilm")
ONCE = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)


class Bench:
    """One model, exported once, with its workload and reference."""

    def __init__(self, preparation, store, spec):
        self.store = store
        self.exported = preparation.export(spec)
        self.workload = preparation.workload(self.exported)
        self.reference = preparation.reference(self.exported, self.workload)
        self._preparation = preparation

    def judge(self, precision, workload=None):
        """Deltas, flags and executed types of an engine."""
        variant = Variant(self.exported.spec.name, "openvino", precision)
        calibrated = workload or self.workload
        if precision is Precision.BEST:
            built = self._preparation.build(variant, self.exported, calibrated, self.reference)
        else:
            built = build_engine(self.store, variant, self.exported, calibrated)
        with built.load(self.workload, threads=2) as engine:
            embeddings = embed_all(engine, self.workload.evaluation)
            flags = execution_flags(built, engine.executed)
            return compare(embeddings, self.reference.embeddings), flags, engine.executed, built


@pytest.fixture(scope="module")
def options(pytestconfig, tmp_path_factory):
    """With 96 texts: 32 to calibrate with and 64 to judge, a quarter of what a run takes."""
    texts = tmp_path_factory.mktemp("workload") / "texts.txt"
    texts.write_text("\n".join(default_corpus()[:96]))
    plain = Options.from_config(pytestconfig)
    return dataclasses.replace(plain, backend="openvino", threads=2, workload=texts)


@pytest.fixture(scope="module", params=MODELS)
def bench(request, options, torch_loaded):
    preparation = Preparation(options, lambda what: contextlib.nullcontext())
    return Bench(preparation, Store(options.engine_cache), SHIPPED[request.param])


def test_five_variants_in_order_of_their_precision(bench):
    found = {precision: bench.judge(precision) for precision in Precision}
    ran = [p for p in ONCE if p is not Precision.BF16 or runs_bf16(*found[p])]
    deltas = [found[precision][0].max_abs for precision in ran]
    assert deltas == sorted(set(deltas))
    for precision in Precision:
        limits = limits_for(precision, {})
        assert violations(found[precision][0], limits) == (), precision
    assert violations(found[Precision.INT8][0], DEFAULT_LIMITS[Precision.FP16])
    assert set(found[Precision.FP32][2].matmuls) == {"f32"}
    assert_int8(bench.exported.onnx, *found[Precision.INT8])
    assert found[Precision.BEST][3].precision is not Precision.BEST
    if OpenVino().stand_in(Precision.FP16):
        assert "fp16 requested, f32 ran" in found[Precision.FP16][1][0]
    assert_weights_are_named(bench.exported)


def runs_bf16(_deltas, flags, executed, _built):
    """Whether bf16 ran: everywhere on a processor that has it; else it is flagged, or emulated."""
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert set(executed.matmuls) == {"bf16"}
    assert bool(flags) == (set(executed.matmuls) != {"bf16"})
    return "bf16" in executed.matmuls


def assert_int8(onnx, _deltas, flags, executed, built):
    """All in 8 bits; without VNNI the products of probabilities and values stay f32, flagged."""
    high = sum(count for kind, count in executed.matmuls.items() if kind not in {"i8", "u8"})
    assert high in ({0} if has_vnni(built) else {0, attentions(onnx)})
    elsewhere = f"({high} of {sum(executed.matmuls.values())} matrix multiplications elsewhere)"
    assert [elsewhere in flag for flag in flags] == ([True] if high else [])


def has_vnni(built):
    """By the instruction set that OpenVINO wrote into the engine, which knows its own switches."""
    blob = (built.entry.folder / "engine.blob").read_bytes()
    return bool(re.search(rb"isa=[ -~]*(DL Boost|AVX10)", blob))


def attentions(onnx):
    """How many of a model's multiplications take a softmax."""
    nodes = load_onnx(onnx, load_external_data=False).graph.node
    softmax = {name for node in nodes if node.op_type == "Softmax" for name in node.output}
    return sum(node.op_type == "MatMul" and not softmax.isdisjoint(node.input) for node in nodes)


def assert_weights_are_named(exported):
    if exported.spec.name == "minilm":
        assert exported.weights == "from package:all_minilm_l6_v2"
    else:
        assert exported.weights.startswith("seeded (")
        assert "head" in exported.weights


@pytest.fixture(scope="module")
def minilm(options, torch_loaded):
    preparation = Preparation(options, lambda what: contextlib.nullcontext())
    return Bench(preparation, Store(options.engine_cache), SHIPPED["minilm"])


def test_an_int8_calibrated_on_zeros_is_caught(minilm):
    zeros = {name: np.zeros_like(v) for name, v in minilm.workload.calibration.items()}
    zeros["attention_mask"][:, 0] = 1
    blind = dataclasses.replace(minilm.workload, calibration=zeros, sha256="zeros")
    deltas, *_ = minilm.judge(Precision.INT8, blind)
    assert violations(deltas, DEFAULT_LIMITS[Precision.INT8])


def test_minilm_gives_the_embeddings_that_its_library_gives(minilm):
    from sentence_transformers import SentenceTransformer

    from enginegate.models.sources import locate

    folder = locate(SHIPPED["minilm"], minilm.store)
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    library.max_seq_length = 32
    expected = library.encode(list(minilm.workload.texts[:16]))
    assert np.abs(minilm.reference.embeddings[:16] - expected).max() < 1e-5


@pytest.fixture
def exporter(options, tmp_path):
    cached = dataclasses.replace(options, engine_cache=tmp_path / "cache")
    return Preparation(cached, lambda what: contextlib.nullcontext())


COMMON: dict[str, Any] = {"vocab_size": 300, "seq_len": 8}


def test_a_transformers_folder_with_a_seeded_head(exporter, save_small_bert, tmp_path):
    folder = str(save_small_bert(tmp_path / "folder"))
    exported = exporter.export(ModelSpec("f", Kind.TRANSFORMERS, folder, head=4, **COMMON))
    assert exported.weights == "seeded (head)"
    assert exporter.reference(exported, exporter.workload(exported)).embeddings.shape == (64, 4)


def test_a_factory(exporter, torch_loaded, tmp_path, monkeypatch):
    (tmp_path / "my_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    exported = exporter.export(ModelSpec("m", Kind.FACTORY, "my_factory:make", **COMMON))
    assert exported.weights == "from factory my_factory:make"
    assert exporter.reference(exported, exporter.workload(exported)).embeddings.shape == (64, 16)


def test_an_export_that_differs_from_torch_never_becomes_the_reference(
    exporter, save_small_bert, tmp_path, monkeypatch
):
    def off(path, batch):
        return run_onnx(path, batch) * np.float32(1.001)

    monkeypatch.setattr("enginegate.session.preparation.run_reference", off)
    folder = str(save_small_bert(tmp_path / "folder"))
    with pytest.raises(ModelError, match=r"differs from torch by 0\.001.*cannot be the reference"):
        exporter.export(ModelSpec("f", Kind.TRANSFORMERS, folder, **COMMON))
    assert not list((tmp_path / "cache").glob("model/*"))


FACTORY = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(300, 16)
    def forward(self, ids, mask):
        weight = mask.unsqueeze(-1).float()
        return (self.table(ids) * weight).sum(1) / weight.sum(1)

def make():
    torch.manual_seed(3)
    return Tiny()
"""


def test_rows_keep_their_text_whatever_the_batch(minilm):
    """The reference itself must not mix rows."""
    whole = minilm.reference.embeddings[:8]
    alone = embed_all(minilm.reference.engine, take(minilm.workload.evaluation, slice(8)), size=1)
    assert np.abs(whole - alone).max() < 1e-5
