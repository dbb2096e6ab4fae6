"""The fewest layers kept in fp32: searched, built, proven, offered as configuration."""

import dataclasses
import json
import math

import numpy as np
import pytest

from enginegate.accuracy.deltas import compare
from enginegate.cache import Store
from enginegate.diagnostics.layers.repair import repaired
from enginegate.diagnostics.layers.search import Blamed, by_worth, fewest
from enginegate.engines import Executed, Profiles
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine, execution_flags, kept_notes
from enginegate.engines.onnxruntime import run_onnx
from enginegate.engines.openvino import OpenVino
from enginegate.engines.registry import get_backend
from enginegate.errors import EngineError, OptionError
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.layers import Layer, nodes_of, read_layers
from enginegate.models.spec import specs_from
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.variants import Precision, Variant

ROLES = {"input_ids": "ids", "attention_mask": "mask"}
LAYERS = tuple(Layer(f"block {i}", "MatMul", (f"n{i}",), 1, 10 * (i + 1)) for i in range(9))


@pytest.mark.parametrize("needed", [{0}, {2}, {0, 3}, {1, 2, 8}, set(range(9))])
def test_the_search_finds_what_is_needed_and_no_more(needed):
    wanted = {LAYERS[i] for i in needed}
    tried = []

    def enough(kept):
        tried.append(kept)
        return wanted <= set(kept)

    assert set(fewest(LAYERS, enough) or ()) == wanted
    assert len(tried) <= 4 + 4 + 9


def test_where_all_are_not_enough_there_is_none():
    assert fewest(LAYERS, lambda kept: False) is None
    assert fewest((), lambda kept: False) is None


def test_cheap_layers_come_before_costly_ones_and_harmless_ones_last():
    shares = {"block 0": (0.1, 0.0), "block 8": (0.2, 0.0), "block 4": (-0.3, 0.02)}
    shares |= {"block 2": (-0.1, 0.5)}  # hides the error of another, and does much damage itself
    blamed = [Blamed(name, "MatMul", 0, alone, share) for name, (share, alone) in shares.items()]
    names = [layer.name for layer in by_worth(LAYERS, blamed, 0.2)]
    assert names == ["block 2", "block 0", "block 8", "block 4"]


@pytest.fixture(scope="module")
def workload():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)


@pytest.fixture
def exported(tmp_path, layered):
    """A model whose block 1 int8 cannot carry: one of its inner values is large."""
    path = layered.write_layered_onnx(tmp_path / "plain.onnx")
    wide = layered.weight(path, "in1").copy()
    wide[:, 0] *= 60
    gains = layered.weight(path, "gain0").copy()
    gains[3] *= 40
    layered.write_layered_onnx(tmp_path / "model.onnx", in1=wide, gain0=gains)
    spec = ModelSpec("m", Kind.ONNX, str(tmp_path / "model.onnx"), vocab_size=200, seq_len=8)
    onnx = tmp_path / "model.onnx"
    return Exported(spec, onnx, "hash", "from model.onnx", None, ROLES, "sentence_embedding")


def keeping(exported, *names):
    spec = dataclasses.replace(exported.spec, keep={"int8": names})
    return dataclasses.replace(exported, spec=spec)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_layers_named_in_the_definition_are_kept_proven_and_flagged(
    tmp_path, exported, workload, backend
):
    store, variant = Store(tmp_path / "store"), Variant("m", backend, Precision.INT8)
    plain = build_engine(store, variant, exported, workload)
    kept = build_engine(store, variant, keeping(exported, "block 1"), workload)
    assert kept.entry.folder != plain.entry.folder
    with plain.load(workload, threads=1) as engine:
        before = engine.executed.matmuls.get("f32", 0)
    with kept.load(workload, threads=1) as engine:
        (note,), others = kept_notes(kept, engine.executed), execution_flags(kept, engine.executed)
        assert engine.executed.matmuls["f32"] > before
    assert note.startswith("kept in fp32: block 1/ffn/lin1, block 1/")
    assert bool(others) == bool(before)


def test_a_layer_that_was_to_be_kept_and_was_not_is_flagged(tmp_path, exported, workload):
    store, variant = Store(tmp_path / "store"), Variant("m", "openvino", Precision.INT8)
    built = build_engine(store, variant, keeping(exported, "block 1/ffn/lin1"), workload)
    (none,) = execution_flags(built, Executed({"u8": 6}))
    assert none == "nothing was kept: u8 ran everywhere"
    (more,) = execution_flags(built, Executed({"u8": 3, "f32": 3}))
    assert "(2 of 6 matrix multiplications elsewhere)" in more


def test_keeping_what_no_layer_is_named_is_an_error(tmp_path, exported, workload):
    variant = Variant("m", "openvino", Precision.INT8)
    with pytest.raises(OptionError, match="no layer is named 'block 9'"):
        build_engine(Store(tmp_path), variant, keeping(exported, "block 9"), workload)


def test_a_backend_that_cannot_keep_is_an_error(tmp_path, exported, workload, monkeypatch):
    monkeypatch.setattr(OpenVino, "stand_in", lambda self, precision: None)
    spec = dataclasses.replace(exported.spec, keep={"bf16": ["block 1"]})
    variant = Variant("m", "openvino", Precision.BF16)
    with pytest.raises(EngineError, match="for int8 only"):
        build_engine(Store(tmp_path), variant, dataclasses.replace(exported, spec=spec), workload)


@pytest.mark.parametrize("keep", ["block 1", {"int9": []}, {"int8": "block 1"}, {"int8": [3]}])
def test_a_wrong_table_of_kept_layers_is_refused(keep, tmp_path):
    with pytest.raises(OptionError, match=r"models.mine.: keep = .* is not a table"):
        specs_from({"mine": {"onnx": "m.onnx", "keep": keep}}, tmp_path)


def between(worse, better):
    """Accepts what is nearer to `better` than to `worse`, in the logarithm of the cosine's error.

    Which layers suffer, and how much, depends on the processor's kernels (without VNNI their sums
    saturate): the limit lies between what engines do on this machine.
    """
    limit = 1 - math.sqrt((1 - worse) * (1 - better))

    def accept(worst):
        return () if worst >= limit else (f"worst cosine {worst:.5f}, not {limit:.5f}",)

    return accept


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_engine_beyond_its_limits_is_repaired(tmp_path, exported, workload, backend):
    store, variant = Store(tmp_path / "store"), Variant("m", backend, Precision.INT8)
    reference = run_onnx(exported.onnx, workload.evaluation)

    def again(names):
        return build_engine(store, variant, exported, workload, keep=names)

    def worst_of(built):
        with built.load(workload, threads=1) as engine:
            return compare(embed_all(engine, workload.evaluation), reference).cosine_worst

    built = again(())
    whole, without = worst_of(built), worst_of(again(["block 0", "block 1"]))
    assert without > whole, "nothing to repair"
    limit = between(whole, without)

    def accept(found, engine):
        return limit(compare(found, reference).cosine_worst)

    mended, repair = repaired(built, again, exported, workload, reference, accept, 1)
    assert limit(whole)
    assert limit(worst_of(mended)) == ()
    assert repair
    assert_no_fewer(repair)
    assert repair.recovered_share > 0.2
    assert repair.configuration.startswith("[tool.enginegate.models.m.keep]\nint8 = [")
    assert repair.speedup_after > 0


def assert_no_fewer(repair):
    """Not all six that are quantised are kept; without each, but with the others, it failed."""
    kept = set(repair.kept)
    failed = [set(step.kept) for step in repair.steps if not step.enough]
    assert 0 < len(kept) < 6
    assert [step.enough for step in repair.steps if set(step.kept) == kept] == [True]
    for name in kept:
        assert any(name not in tried and kept - {name} <= tried for tried in failed), name


def test_what_no_layers_can_repair_stays_as_it_is(tmp_path, exported, workload):
    store, variant = Store(tmp_path / "store"), Variant("m", "onnxruntime", Precision.INT8)
    built = build_engine(store, variant, exported, workload)
    reference = run_onnx(exported.onnx, workload.evaluation)

    def never(names):
        pytest.fail("nothing is to be built again")

    hopeless, repair = repaired(
        built, never, exported, workload, reference, lambda *_: ("never",), 1
    )
    assert hopeless.entry == built.entry
    assert "no set of layers" in hopeless.notes[-1]
    assert repair
    assert repair.configuration == ""
    content, _ = repaired(built, never, exported, workload, reference, lambda *_: (), 1)
    assert content.notes[-1] == "repair: nothing to do, its embeddings are within their limits"


def test_layers_that_do_not_fit_are_named_where_none_can_be_kept(tmp_path, exported, workload):
    variant = Variant("m", "openvino", Precision.FP32)
    built = build_engine(Store(tmp_path / "store"), variant, exported, workload)
    reference = run_onnx(exported.onnx, workload.evaluation)
    given = (exported, workload, reference, lambda *_: (), 1, ("block 1",))
    same, repair = repaired(built, lambda names: built, *given)
    assert (same.entry, repair) == (built.entry, None)
    assert same.notes[-1].startswith("repair: not possible: ")
    assert same.notes[-1].endswith("; numbers beyond fp16 are in block 1")


PYPROJECT = """
[tool.enginegate.models.tiny.limits.int8]
cosine_worst = 0.98
cosine_p1 = 0.985
"""


def test_a_run_repairs_offers_the_configuration_and_honours_it(project, exported):
    """Fails, is repaired, and passes without --gate-repair with the lines that the run printed."""
    (project.path / "tiny.onnx").write_bytes(exported.onnx.read_bytes())
    settings = project.path / "pyproject.toml"
    settings.write_text(settings.read_text() + PYPROJECT)
    arguments = ("--precision=int8", "-k", "embeddings")
    assert project.run(*arguments).ret != 0
    mended = project.run(*arguments, "--gate-repair", "--gate-report-json=report.json")
    assert mended.ret == 0
    mended.stdout.fnmatch_lines(["int8: kept in fp32: block*", "int8: repair: * kept in*"])
    mended.stdout.fnmatch_lines(["kept  damage gone *", "[[]tool.enginegate.models.tiny.keep]"])
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    settings.write_text(settings.read_text() + found["repair"]["configuration"] + "\n")
    again = project.run(*arguments)
    assert again.ret == 0
    again.stdout.fnmatch_lines(["int8: kept in fp32: block*"])


def test_time_goes_to_the_type_that_ran(tmp_path, exported, workload):
    for backend, low in (("onnxruntime", "i8"), ("openvino", "u8")):
        variant = Variant("m", backend, Precision.INT8)
        built = build_engine(Store(tmp_path / "store"), variant, exported, workload)
        entry, runtime = built.entry, get_backend(backend)
        assert isinstance(runtime, Profiles)
        found = runtime.profile(entry.folder, entry.properties, workload.batch(8), threads=1)
        assert low in found.time_share
        assert sum(found.time_share.values()) == pytest.approx(1)
        assert list(found.time_share.values()) == sorted(found.time_share.values(), reverse=True)
        assert {"provider", "denormals", "TF32", "AMX"} <= set(found.states)
        assert found.kernels[0].share >= found.kernels[-1].share > 0


def test_the_report_says_where_the_time_went(project):
    project.judge("--gate-report-json=report.json", "-k", "embeddings")
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert set(found["time_share"]) >= {"f32"}
    assert found["states"]["provider"] == "CPUExecutionProvider"
    assert np.isclose(sum(found["time_share"].values()), 1)
    assert nodes_of(read_layers(project.path / "tiny.onnx")) >= {"sentence_embedding"}
