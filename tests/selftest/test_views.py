"""Fewer dimensions and fewer bits: known answers, planted faults, and clean runs that pass."""

import json
from dataclasses import replace

import numpy as np
import pytest

from enginegate.accuracy.judge import EmbeddingJudge, with_views
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.accuracy.retrieval import Vectors, recall, similarities
from enginegate.accuracy.truth import against_truth, at_dims
from enginegate.accuracy.views import (
    as_binary,
    dimension_views,
    first_numbers,
    int8_by,
    views_of,
)
from enginegate.errors import ModelError, OptionError
from enginegate.models.spec import Kind, ModelSpec, specs_from
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

from .test_quality import workload_of

TEXTS, WIDTH, DIM = 64, 96, 16
NAMES = [f"text {number}" for number in range(TEXTS)]
FIRST = f"first {DIM} of {WIDTH} dimensions"
LIMITS = DEFAULT_LIMITS[Precision.FP32]
SPEC = ModelSpec("mine", Kind.ONNX, "x", dims=(DIM, 48, WIDTH), stored=("int8", "binary"))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    """Vectors of length 1, their first numbers small beside the others."""
    vectors = np.random.default_rng(0).normal(size=(TEXTS, WIDTH))
    vectors[:, :DIM] *= 0.02
    return unit(vectors)


def judged(found, reference, *, precision=Precision.FP32, **asked):
    spec = replace(SPEC, **asked)
    seen = views_of(spec, reference, np.random.default_rng(1).permutation(reference))
    limits = DEFAULT_LIMITS[precision]
    judge = EmbeddingJudge(workload_of(NAMES), reference, limits, precision, None, seen)
    return judge.judge(found)


def verdicts(accuracy):
    return {view.name: view.judgement.verdict for view in accuracy.views}


def rounding(reference, scale, seed):
    noise = np.random.default_rng(seed).normal(size=reference.shape)
    return unit(reference + scale * np.abs(reference).mean() * noise)


@pytest.mark.parametrize("seed", range(20))
def test_clean_engines_pass_in_every_view(reference, seed):
    accuracy = judged(rounding(reference, 1e-7, seed), reference)
    assert accuracy.judgement.verdict is Verdict.PASS
    assert set(verdicts(accuracy).values()) == {Verdict.PASS}
    assert [view.name for view in accuracy.views] == [
        f"first {DIM} of {WIDTH} dimensions",
        f"first 48 of {WIDTH} dimensions",
        f"first {WIDTH} of {WIDTH} dimensions",
        "stored as int8",
        "stored as int8, rescored",
        "stored as binary",
        "stored as binary, rescored",
    ]


def moved(reference, columns, change):
    found = reference.copy()
    found[:, columns] = change(found[:, columns])
    return found


ONE = slice(3, 4)
FAULTS = {
    "the first numbers rounded coarsely": lambda r: moved(
        r, slice(DIM), lambda v: np.round(v, 4).astype(np.float32)
    ),
    "two of the first numbers exchanged": lambda r: moved(
        r, [0, 1], lambda v: v[:, ::-1] * np.float32(0.02)
    ),
    "the first number lost": lambda r: moved(r, slice(1), lambda v: 0 * v),
    "the first number with its sign turned": lambda r: moved(r, slice(1), lambda v: -v),
    "one of the first numbers twice as large": lambda r: moved(r, ONE, lambda v: 2 * v),
    "an offset on the first numbers": lambda r: moved(
        r, slice(DIM), lambda v: v + np.float32(4e-4)
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_first_numbers_fails_and_names_the_dimension(reference, fault):
    loose = {"cosine_worst": 0.999, "cosine_p1": 0.999, "max_abs_relative": 0.05}
    limits = replace(LIMITS, gain_error=0.01, spearman=0.999, **loose)
    plain = EmbeddingJudge(workload_of(NAMES), reference, limits, Precision.FP32)
    found = FAULTS[fault](reference)
    assert plain.judge(found).judgement.verdict is Verdict.PASS  # the whole hides it
    seen = replace(plain, views=dimension_views((DIM, 48), reference))
    accuracy = seen.judge(found)
    assert accuracy.judgement.verdict is Verdict.FAIL
    assert all(reason.startswith(f"{FIRST}: ") for reason in accuracy.faults)
    assert verdicts(accuracy)[f"first 48 of {WIDTH} dimensions"] is Verdict.PASS


def test_first_numbers_that_are_all_zero_are_said_to_be(reference):
    found = moved(reference, slice(DIM), lambda v: 0 * v)
    accuracy = judged(found, reference, stored=())
    said = f"{FIRST}: the engine gave all zeros for {TEXTS} texts, first: 0"
    assert said in accuracy.judgement.reasons
    assert accuracy.views[0].deltas is None


def test_first_numbers_are_scaled_only_where_the_whole_has_length_1(reference):
    cut = first_numbers(reference, DIM, unit=True)
    assert np.linalg.norm(cut, axis=1) == pytest.approx(1)
    plain = first_numbers(reference, DIM, unit=False)
    assert np.array_equal(plain, reference[:, :DIM])
    (scaled,) = judged(reference, reference, dims=(DIM,), stored=()).views
    (kept,) = judged(3 * reference, 3 * reference, dims=(DIM,), stored=()).views
    assert scaled.deltas.scale == pytest.approx(np.abs(cut).max())
    assert kept.deltas.scale == pytest.approx(3 * np.abs(plain).max())


def test_int8_and_binary_are_stored_as_sentence_transformers_does(reference):
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    sample, others = reference[:32], 1.1 * reference[32:]  # some are beyond the sample's ranges
    codes = quantization.quantize_embeddings(others, "int8", calibration_embeddings=sample)
    low, high = sample.min(axis=0), sample.max(axis=0)
    stored = low + (codes.astype(float) + 128 + 0.5) * (high - low) / 255
    assert int8_by(sample)(others) == pytest.approx(stored, abs=float((high - low).max()) / 250)
    bits = quantization.quantize_embeddings(others, "ubinary")
    assert np.array_equal(np.packbits(as_binary(others) > 0, axis=1), bits)


def test_the_cosine_of_signs_is_their_hamming_distance(reference):
    signs = as_binary(reference)
    apart = (signs[0] != signs[1:]).mean(axis=1)
    assert similarities(Vectors(signs))[0] == pytest.approx(1 - 2 * apart)


def test_rescoring_orders_what_the_first_search_found(reference):
    seen = {view.name: view for view in views_of(SPEC, reference, reference)}
    exact = similarities(Vectors(reference))
    plain = seen["stored as binary"].similar(Vectors(reference))
    again = seen["stored as binary, rescored"].similar(Vectors(reference))
    assert recall(again, exact, 10).mean() > recall(plain, exact, 10).mean()
    last = np.sort(plain, axis=1)[:, -20]
    assert (plain[again > -1] >= np.repeat(last, (again > -1).sum(axis=1))).all()
    assert ((again > -1).sum(axis=1) == 20).all()


STORED_FAULTS = {
    "an offset, which turns signs": lambda r: r + np.float32(0.05),
    "texts in another order": lambda r: r[::-1].copy(),
    "half of the numbers with their signs turned": lambda r: moved(
        r, slice(WIDTH // 2), lambda v: -v
    ),
    "small numbers cut to nothing": lambda r: np.where(np.abs(r) < 0.06, np.float32(0), r),
    "noise": lambda r: rounding(r, 0.8, 5),
    "numbers beyond the ranges": lambda r: np.sign(r) * np.abs(r) ** np.float32(0.3),
}


@pytest.mark.parametrize("fault", STORED_FAULTS)
def test_a_fault_that_stored_vectors_show_fails_there(reference, fault):
    accuracy = judged(STORED_FAULTS[fault](reference), reference, dims=())
    assert accuracy.judgement.verdict is Verdict.FAIL
    failed = {name for name, verdict in verdicts(accuracy).items() if verdict is Verdict.FAIL}
    assert failed & {"stored as binary", "stored as int8"}
    assert any(reason.startswith("stored as ") for reason in accuracy.faults)


def test_the_limit_of_what_is_stored_is_the_tables_own(reference):
    found = rounding(reference, 0.05, 7)
    asked = {"dims": (), "stored": ("binary",), "precision": Precision.INT8}
    assert verdicts(judged(found, reference, **asked))["stored as binary"] is Verdict.FLAGGED
    seen = views_of(replace(SPEC, dims=(), stored=("binary",)), reference, None)
    strict = replace(DEFAULT_LIMITS[Precision.INT8], binary_recall_at_10=0.999)
    judge = EmbeddingJudge(workload_of(NAMES), reference, strict, Precision.INT8, None, seen)
    assert verdicts(judge.judge(found))["stored as binary"] is Verdict.FAIL


def test_looser_limits_of_a_view_are_named_once(reference):
    found = rounding(reference, 0.05, 7)
    accuracy = judged(found, reference, dims=(), precision=Precision.INT8)
    assert accuracy.judgement.verdict is Verdict.FLAGGED
    assert not [reason for reason in accuracy.judgement.reasons if "stored as" in reason]
    plain = EmbeddingJudge(workload_of(NAMES), reference, LIMITS, Precision.FP32).judge(reference)
    flagged = with_views(plain.judgement, accuracy.views)
    assert flagged.verdict is Verdict.FLAGGED
    (said,) = flagged.reasons
    assert said.startswith("within its own looser limits, beyond those of fp16, stored as int8")


def test_more_dimensions_than_there_are_is_an_error(reference):
    with pytest.raises(ModelError, match=rf"dims = \[1024\], and its embeddings have {WIDTH}"):
        views_of(replace(SPEC, dims=(DIM, 1024)), reference, None)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"dims": 64}, "dims = 64 is not a list of whole numbers"),
        ({"dims": [64, 64]}, "each once"),
        ({"dims": [0]}, "whole numbers"),
        ({"dims": [True]}, "whole numbers"),
        ({"stored": ["int4"]}, "is not a list of int8, binary"),
        ({"stored": "int8"}, "is not a list of int8, binary"),
    ],
)
def test_wrong_values_are_refused(tmp_path, table, said):
    with pytest.raises(OptionError, match=said):
        specs_from({"mine": {"onnx": "x.onnx", **table}}, tmp_path)


def test_a_reference_that_is_the_model_but_for_its_first_numbers_is_not(reference):
    truth = reference.astype(np.float64)
    whole = against_truth(reference, truth, "encode()")
    same = at_dims(whole, reference, truth, (DIM, 48))
    assert same.judgement.verdict is Verdict.PASS
    assert same.text.endswith(f"by encode(), also in its first {DIM}, 48 dimensions")
    other = moved(reference, slice(2), lambda v: v + np.float32(2e-5))
    found = against_truth(other, truth, "encode()")
    assert found.judgement.verdict is Verdict.PASS
    cut = at_dims(found, other, truth, (DIM, 48))
    assert cut.judgement.verdict is Verdict.FAIL
    assert cut.text.startswith(f"in its first {DIM} dimensions the reference is not the model")


@pytest.fixture
def asked(project):
    """A project whose table asks for two dimensions and both ways to store."""
    table = (project.path / "pyproject.toml").read_text()
    more = 'seq_len = 8\ndims = [4, 16]\nstored = ["int8", "binary"]'
    project.write("pyproject.toml", table.replace("seq_len = 8", more))
    return project


REPORTS = ("--gate-report-json=r.json", "--gate-report-html=r.html", "--gate-report-markdown=r.md")
VIEWS = (
    "first 4 of 16 dimensions",
    "first 16 of 16 dimensions",
    "stored as int8",
    "stored as int8, rescored",
    "stored as binary",
    "stored as binary, rescored",
)


def test_a_clean_run_tells_of_every_view_in_every_output(asked):
    result = asked.judge(*REPORTS, "--gate-report-text=r.txt", "-k", "embeddings")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["fp32: first 4 of 16 dimensions: pass: worst cosine 1.0*"])
    (found,) = json.loads((asked.path / "r.json").read_text())["results"]
    assert tuple(view["name"] for view in found["accuracy"]["views"]) == VIEWS
    for name in ("r.html", "r.md", "r.txt"):
        text = (asked.path / name).read_text()
        assert [view for view in VIEWS if view not in text] == []


def test_a_fault_is_told_with_its_dimension_in_every_output(asked):
    asked.plant("head off by 1 %")
    result = asked.judge(*REPORTS, "-k", "embeddings")
    assert result.ret == 10
    result.stdout.fnmatch_lines(["*first 4 of 16 dimensions: max_abs_relative 0.01 > 5e-05*"])
    (found,) = json.loads((asked.path / "r.json").read_text())["results"]
    verdicts = {view["name"]: view["judgement"]["verdict"] for view in found["accuracy"]["views"]}
    assert verdicts["first 4 of 16 dimensions"] == "fail"
    assert verdicts["stored as binary"] == "pass"  # a gain turns no sign
    for name in ("r.html", "r.md"):
        assert "first 4 of 16 dimensions" in (asked.path / name).read_text()


def test_more_dimensions_than_the_model_has_end_the_run(asked):
    table = (asked.path / "pyproject.toml").read_text()
    asked.write("pyproject.toml", table.replace("dims = [4, 16]", "dims = [4, 64]"))
    result = asked.judge("-k", "embeddings")
    assert result.ret == 12
    result.stdout.fnmatch_lines(["*dims = ?64?, and its embeddings have 16 numbers: give at most*"])


def test_best_is_chosen_among_engines_that_pass_in_every_view(asked):
    asked.plant("head off by 1 %")
    result = asked.run("--precision", "best", "-k", "embeddings")
    result.stdout.fnmatch_lines(["*no engine is within the limits of best*first 4 of 16 dim*"])
