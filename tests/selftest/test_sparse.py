"""Sparse vectors: known answers, planted faults, and clean runs that pass."""

import dataclasses

import numpy as np
import pytest

from enginegate.accuracy.judge import EmbeddingJudge
from enginegate.accuracy.limits import limits_for
from enginegate.accuracy.retrieval import Vectors
from enginegate.accuracy.sparse import (
    LARGEST,
    check_sparse,
    compare_terms,
    products,
    term_violations,
)
from enginegate.errors import EmbeddingError, ModelError, OptionError
from enginegate.models import export
from enginegate.models.checkpoints import as_found, check_folder
from enginegate.models.spec import Kind, ModelSpec, OutputKind, specs_from
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

from .test_quality import workload_of

cases = pytest.mark.xdist_group("cases")
TEXTS, WORDS = 64, 600
WORKLOAD = dataclasses.replace(
    workload_of([f"text {number}" for number in range(TEXTS)]), kind=OutputKind.SPARSE
)


@pytest.fixture(scope="module")
def logits():
    """Words above 0 in a tenth of the cases, as SPLADE's before its activation."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=WORDS)
    return rng.normal(-1.6, 1, size=(TEXTS, WORDS)) + 0.3 * common


def activated(logits):
    return np.log1p(np.maximum(logits, 0)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(logits):
    return activated(logits)


def judged(found, reference, precision=Precision.FP32):
    limits = limits_for(precision, {}, OutputKind.SPARSE)
    return EmbeddingJudge(WORKLOAD, reference, limits, precision).judge(found.astype(np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_clean_engines_pass(logits, reference, seed):
    noise = np.random.default_rng(seed).normal(size=logits.shape)
    accuracy = judged(activated(logits + 1e-6 * noise), reference)
    assert (accuracy.judgement.verdict, accuracy.faults) == (Verdict.PASS, ())
    assert accuracy.terms.kept.value > 0.999
    assert accuracy.terms.active == pytest.approx(accuracy.terms.active_reference, abs=0.1)


def largest_lost(vectors):
    found = vectors.copy()
    found[np.arange(TEXTS), vectors.argmax(axis=1)] = 0
    return found


def exchanged(vectors):
    found = vectors.copy()
    found[[0, 1]] = found[[1, 0]]
    return found


FAULTS = {
    "negative weights": lambda x: np.log1p(np.abs(x)) * np.sign(x),
    "dense: a soft activation": lambda x: np.log1p(np.log1p(np.exp(x))),
    "dense: a small offset": lambda x: activated(x) + 1e-5,
    "the logarithm left out": lambda x: np.maximum(x, 0),
    "the largest term lost": lambda x: largest_lost(activated(x)),
    "few terms kept": lambda x: np.where(activated(x) > 0.3, activated(x), 0),
    "words shifted by one": lambda x: np.roll(activated(x), 1, axis=1),
    "texts exchanged": lambda x: exchanged(activated(x)),
    "words at random": lambda x: np.random.default_rng(3).permutation(activated(x), axis=1),
    "no terms at all": lambda x: 0 * x,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_planted_fault_fails(logits, reference, fault, precision):
    accuracy = judged(FAULTS[fault](logits), reference, precision)
    assert accuracy.judgement.verdict is Verdict.FAIL


def test_what_cosines_hide_terms_show(logits, reference):
    """By the limits of int8, beside vectors that give every word a weight."""
    accuracy = judged(activated(logits) + np.float32(1e-4), reference, Precision.INT8)
    assert accuracy.deltas.cosine_worst > 0.999
    (said,) = (fault for fault in accuracy.faults if fault.startswith("active_change "))
    assert said.endswith(f"-> {WORDS:.1f} terms a text")


def test_terms_of_a_hand_made_text():
    expected = np.zeros((2, 50))
    expected[:, :40] = np.arange(40, 0, -1)
    found = expected.copy()
    found[0, :8] = 0  # 8 of its 32 largest
    terms = compare_terms(found, expected)
    assert terms.kept.value == pytest.approx((24 / LARGEST + 1) / 2)
    assert (terms.active, terms.active_reference) == (36, 40)
    assert terms.active_change == pytest.approx(0.1)
    limits = dataclasses.replace(
        limits_for(Precision.FP32, {}), terms_kept=0.999, active_change=0.05
    )
    few = dataclasses.replace(terms, kept=dataclasses.replace(terms.kept, high=0.9))
    names = [said.partition(" ")[0] for said in term_violations(few, limits)]
    assert names == ["terms_kept", "active_change"]


def test_texts_are_found_by_products_and_not_by_cosines():
    vectors = np.array([[1.0, 0.0], [3.0, 3.0], [1.0, 0.1]])
    assert products(Vectors(vectors))[0] == pytest.approx([3.0, 1.0])
    assert products(Vectors(vectors[:1], vectors[1:])) == pytest.approx(np.array([[3.0, 1.0]]))


def test_negative_weights_are_named():
    with pytest.raises(EmbeddingError, match="it gave negative weights for 1 texts, first: 1"):
        check_sparse(np.array([[1.0, 0.0], [0.5, -0.1]]), "it")


@pytest.mark.parametrize("key", [{"pooling": "mean"}, {"dims": [4]}, {"stored": ["int8"]}])
def test_keys_of_dense_embeddings_are_refused(tmp_path, key):
    table = {"transformers": "x", "output_kind": "sparse", **key}
    with pytest.raises(OptionError, match="gives sparse outputs: it is about dense ones"):
        specs_from({"mine": table}, tmp_path)


@cases
def test_a_sparse_encoder_is_found_to_be_one(make_case):
    folder = make_case("splade") / "model"
    spec = ModelSpec("mine", Kind.SENTENCE_TRANSFORMERS, str(folder))
    found = as_found(spec, folder)
    assert found.output_kind is OutputKind.SPARSE
    check_folder(found, folder)
    with pytest.raises(ModelError, match=r"output_kind = 'dense', and .*is a sparse encoder \("):
        as_found(dataclasses.replace(spec, output_kind=OutputKind.DENSE), folder)


@cases
def test_a_sparse_encoder_is_judged_from_its_folder(judge_case, pytester):
    kinds = {"html": "r.html", "markdown": "r.md", "text": "r.txt"}
    reports = [f"--gate-report-{kind}={pytester.path / name}" for kind, name in kinds.items()]
    result, report = judge_case("splade", "fp32", *reports)
    assert all("largest kept" in (pytester.path / n).read_text() for n in kinds.values())
    assert result.ret == 0
    (found,) = report["results"]
    truth, terms = found["truth"], found["accuracy"]["terms"]
    assert (truth["by"], truth["judgement"]["verdict"]) == ("encode()", "pass")
    assert (found["embedding_verdict"], found["context"]["output_kind"]) == ("pass", "sparse")
    assert 10 < terms["active"] < 1000
    assert terms["kept"]["value"] > 0.999
    result.stdout.fnmatch_lines(["fp32: terms: * terms a text, of the 32 largest kept *"])


def spoiled(fault):
    def weights(model, ids, mask):
        logits = model[0]({"input_ids": ids, "attention_mask": mask})["token_embeddings"]
        kept = logits * mask.unsqueeze(-1)
        return {
            "padding counted": lambda: logits.relu().log1p().amax(1),
            "the logarithm left out": lambda: kept.relu().amax(1),
            "no activation": lambda: logits.amin(1),
        }[fault]()

    return weights


@cases
@pytest.mark.parametrize("fault", ["padding counted", "the logarithm left out"])
def test_a_reference_that_is_not_the_model_is_caught(
    quick_export, judge_case, monkeypatch, tmp_path, fault
):
    monkeypatch.setattr(export, "splade_weights", spoiled(fault))
    result, report = judge_case("splade", "fp32", f"--gate-engine-cache={tmp_path}")
    assert result.ret == 10
    (found,) = report["results"]
    assert found["truth"]["judgement"]["verdict"] == "fail"
    assert found["decision"] == "block"


@cases
def test_negative_weights_of_a_reference_end_the_run(
    quick_export, judge_case, monkeypatch, tmp_path
):
    monkeypatch.setattr(export, "splade_weights", spoiled("no activation"))
    result, _ = judge_case("splade", "fp32", f"--gate-engine-cache={tmp_path}")
    assert result.ret == 12
    result.stdout.fnmatch_lines(["*the reference of mine gave negative weights for*"])
