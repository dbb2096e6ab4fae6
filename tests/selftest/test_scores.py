"""Scores of pairs: known answers, planted faults, and clean runs that pass."""

import dataclasses

import numpy as np
import pytest

from enginegate.accuracy.collection import Pairs as LabelledPairs
from enginegate.accuracy.judge import EmbeddingJudge
from enginegate.accuracy.limits import limits_for
from enginegate.accuracy.retrieval import Names
from enginegate.accuracy.scores import (
    by_query,
    check_scores,
    compare_scores,
    rank_documents,
    score_cause,
    score_cosines,
)
from enginegate.accuracy.user_texts import UserData, refuse_labels
from enginegate.errors import EmbeddingError, ModelError, OptionError, WorkloadError
from enginegate.models import export, tokens
from enginegate.models.checkpoints import as_found, check_folder
from enginegate.models.pairs import PER_QUERY, QUERIES, Pairs, pairs_of, split
from enginegate.models.spec import Kind, ModelSpec, OutputKind, specs_from
from enginegate.models.tokens import Encoded
from enginegate.models.workload import Workload, make_pairs_workload, read_texts
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

cases = pytest.mark.xdist_group("cases")
ROWS = QUERIES * PER_QUERY
PAIRS = Pairs(
    tuple((f"query {q}", f"document {q}.{d}") for q in range(QUERIES) for d in range(PER_QUERY)),
    PER_QUERY,
)
TOKENS = {"input_ids": np.full((ROWS, 8), 5), "attention_mask": np.ones((ROWS, 8), np.int64)}
WORKLOAD = Workload(
    "pairs",
    PAIRS.shown,
    TOKENS,
    TOKENS,
    "0",
    "attention_mask",
    pairs=PAIRS,
    kind=OutputKind.SCORE,
)


@pytest.fixture(scope="module")
def reference():
    """Scores as rerankers give them: most near 0, some near 1."""
    logits = np.random.default_rng(0).normal(-1, 2.5, size=(ROWS, 1))
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def judged(found, reference, precision=Precision.FP32):
    limits = limits_for(precision, {}, OutputKind.SCORE)
    return EmbeddingJudge(WORKLOAD, reference, limits, precision).judge(found)


@pytest.mark.parametrize("seed", range(20))
def test_clean_engines_pass(reference, seed):
    noise = np.random.default_rng(seed).normal(size=reference.shape)
    found = (reference * (1 + 1e-6 * noise)).astype(np.float32)
    accuracy = judged(found, reference)
    assert (accuracy.judgement.verdict, accuracy.faults) == (Verdict.PASS, ())
    assert accuracy.retrieval.ndcg_at_10.change.value == pytest.approx(0, abs=1e-4)


def exchanged(scores):
    found = scores.copy()
    found[[0, 1]] = found[[1, 0]]
    return found


def one_query(change):
    def spoil(scores):
        found = scores.copy()
        found[:PER_QUERY] = change(found[:PER_QUERY])
        return found

    return spoil


FAULTS = {
    "two pairs exchanged": exchanged,
    "rows shifted": lambda s: np.roll(s, 1, axis=0),
    "the activation left out": lambda s: np.log(s / (1 - s)),
    "the activation twice": lambda s: 1 / (1 + np.exp(-s)),
    "the order turned": lambda s: 1 - s,
    "scaled": lambda s: s * np.float32(1.01),
    "an offset": lambda s: s + np.float32(0.01),
    "rounded to eighths": lambda s: np.round(8 * s) / 8,
    "one query's order turned": one_query(lambda s: s[::-1]),
    "one query's scores all the same": one_query(lambda s: 0 * s + np.float32(0.5)),
    "all queries like the first": lambda s: np.resize(s[:PER_QUERY], s.shape),
    "NaN": one_query(lambda s: s * np.nan),
    "all the same": lambda s: 0 * s + np.float32(0.3),
    "two numbers a pair": lambda s: np.concatenate([s, 1 - s], axis=1),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_planted_fault_fails(reference, fault, precision):
    accuracy = judged(FAULTS[fault](reference).astype(np.float32), reference, precision)
    assert accuracy.judgement.verdict is Verdict.FAIL


def test_the_query_that_suffers_is_named(reference):
    found = reference.copy()
    found[5 * PER_QUERY :][:PER_QUERY] = found[5 * PER_QUERY :][:PER_QUERY][::-1]
    accuracy = judged(found, reference)
    assert accuracy.retrieval.worst_query == "query 5"
    worst = accuracy.worst_texts[0]
    assert (worst.index, worst.text, worst.tokens) == (5, "query 5", 8)
    best = int(by_query(reference, PER_QUERY)[5].argmax())
    assert worst.neighbours_before[0] == f"document 5.{best}"
    assert len(accuracy.cosines) == QUERIES


def test_deltas_of_hand_made_scores():
    expected = np.array([[0.0], [1.0], [1.0], [0.0]])
    found = np.array([[0.1], [1.0], [1.0], [0.1]])
    deltas = compare_scores(found, expected, 2)
    assert deltas.max_abs == pytest.approx(0.1)
    assert deltas.scale == 1
    # less the reference's mean: (-.4, .5) beside (-.5, .5)
    assert deltas.cosine_worst == pytest.approx(0.45 / np.sqrt(0.41 * 0.5))
    assert deltas.gain == pytest.approx(0.9)
    same = np.ones((1, 2))
    assert score_cosines(same, same) == pytest.approx(1)


def ndcg_of(found, expected, names):
    change = rank_documents(found, expected, names).ndcg_at_10
    assert change
    return change.candidate


def test_the_ndcg_of_orders_is_1_only_for_the_same_ten():
    expected = np.arange(24, dtype=float).reshape(2, 12)
    names = Names(["a", "b"], ["x"] * 24, 12)
    assert ndcg_of(expected, expected, names) == 1
    late = expected.copy()
    late[:, [0, 1]] = late[:, [1, 0]]  # beyond the ten
    assert ndcg_of(late, expected, names) == 1
    early = expected.copy()
    early[:, [10, 11]] = early[:, [11, 10]]
    assert ndcg_of(early, expected, names) < 0.999
    kendall = rank_documents(early, expected, names).kendall
    assert kendall.value == pytest.approx(1 - 2 / 66)


def test_what_cannot_be_compared_is_said():
    with pytest.raises(EmbeddingError, match="it gave 3 numbers for a pair, where one score is"):
        check_scores(np.zeros((4, 3)), "it")
    with pytest.raises(EmbeddingError, match="it gave the same score for all 4 pairs"):
        check_scores(np.zeros((4, 1)), "it")
    scores = np.arange(4.0).reshape(4, 1)
    with pytest.raises(EmbeddingError, match="the engine gave 3 scores, the reference 4"):
        compare_scores(scores[:3], scores, 2)


def test_every_query_gets_near_and_far_documents():
    queries, documents = split(read_texts(None)[1])
    assert not set(queries) & set(documents)
    found = pairs_of(queries[:QUERIES], documents[:256])
    assert found.per_query == PER_QUERY
    assert found.queries == tuple(queries[:QUERIES])
    assert len(set(found.rows)) == len(found.rows) == ROWS
    few = pairs_of(["one two", "three"], ["two one", "three", "other"])
    assert few.per_query == 2
    assert few.rows[:2] == (("one two", "two one"), ("one two", "three"))
    assert ("three", "three") not in few.rows


def test_pairs_for_calibration_are_others():
    known: dict[str, int] = {}

    def tokenize(pairs):
        ids = np.array([[known.setdefault(text, len(known)) for text in pair] for pair in pairs])
        return Encoded(ids, np.ones_like(ids), np.zeros_like(ids), 0)

    inputs = {"input_ids": "ids", "token_type_ids": "token_types"}
    workload = make_pairs_workload("texts", *split(read_texts(None)[1]), tokenize, inputs)
    assert (workload.shape, workload.kind) == ((ROWS, 2), OutputKind.SCORE)
    evaluated, calibrated = workload.evaluation["input_ids"], workload.calibration["input_ids"]
    assert len(calibrated) == 10 * PER_QUERY
    assert not set(evaluated.ravel()) & set(calibrated.ravel())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"transformers": "x", "output_kind": "words"},
            "is not one of dense, sparse, multi, score",
        ),
        ({"onnx": "x.onnx", "output_kind": "score", "normalize": True}, "about dense ones"),
        ({"factory": "a:b", "output_kind": "score"}, "is not for a model of that kind"),
        ({"transformers": "x", "output_kind": "score", "pooling": "mean"}, "about dense ones"),
        ({"transformers": "x", "output_kind": "score", "dims": [8]}, "about dense ones"),
        ({"transformers": "x", "output_kind": "score", "prompt": "q: "}, "about dense ones"),
    ],
)
def test_keys_that_do_not_fit_scores_are_refused(tmp_path, table, said):
    with pytest.raises(OptionError, match=said):
        specs_from({"mine": table}, tmp_path)


def test_labels_are_refused_beside_scores():
    labelled = LabelledPairs(("a",), ("b",), np.ones(1))
    with pytest.raises(WorkloadError, match="leave out --gate-sts"):
        refuse_labels(UserData(None, labelled), "mine")
    assert not UserData().rows
    refuse_labels(UserData(), "mine")


def spec_of(folder, **keys):
    return ModelSpec("mine", Kind.TRANSFORMERS, str(folder), **keys)


@cases
@pytest.mark.parametrize("name", ["reranker", "reranker-xlm-r"])
def test_a_reranker_is_found_to_be_one(make_case, name):
    folder = make_case(name) / "model"
    found = as_found(spec_of(folder), folder)
    assert found.output_kind is OutputKind.SCORE
    check_folder(found, folder)
    with pytest.raises(ModelError, match=r"output_kind = 'dense', and .*is a reranker \("):
        as_found(spec_of(folder, output_kind="dense"), folder)
    with pytest.raises(OptionError, match="pooling = 'mean' is not of use for a model that"):
        as_found(spec_of(folder, pooling="mean"), folder)


@cases
def test_what_is_no_reranker_is_said_to_be_none(make_case, save_small_bert, tmp_path):
    plain = save_small_bert(tmp_path / "plain")
    assert as_found(spec_of(plain), plain).output_kind is OutputKind.DENSE
    with pytest.raises(
        ModelError, match=r'sparse encoder \(BertModel\): say output_kind = "dense"'
    ):
        as_found(spec_of(plain, output_kind="score"), plain)
    folder = make_case("reranker") / "model"
    body = spec_of(folder, allow_dropped=("classifier.*",))
    assert as_found(body, folder).output_kind is OutputKind.DENSE


@cases
def test_a_reranker_is_judged_from_its_folder(judge_case):
    check_judged(*judge_case("reranker", "fp32"))


@cases
def test_a_reranker_without_token_types_is_judged_too(quick_export, judge_case):
    check_judged(*judge_case("reranker-xlm-r", "fp32"))


def check_judged(result, report):
    assert result.ret == 0
    (found,) = report["results"]
    truth, ranked = found["truth"], found["accuracy"]["retrieval"]
    assert (truth["by"], truth["judgement"]["verdict"]) == ("predict()", "pass")
    assert truth["max_abs_relative"] < 1e-5
    assert (found["embedding_verdict"], found["context"]["output_kind"]) == ("pass", "score")
    assert (ranked["queries"], ranked["documents"]) == (QUERIES, PER_QUERY)
    assert ranked["ndcg_at_10"]["candidate"] == pytest.approx(1, abs=1e-4)
    result.stdout.fnmatch_lines(["*384 pairs x 64 tokens*of 384 pairs cut at 64 tokens*"])


def forget_types(monkeypatch):
    whole = export._of_library
    monkeypatch.setattr(
        export, "_of_library", lambda *given: dataclasses.replace(whole(*given), types=False)
    )


def turn_pairs(monkeypatch):
    """In the tokens of the reference; its authors' own do not turn."""
    whole = tokens.file_tokenizer

    def turned(*given, **how):
        tokenize = whole(*given, **how)
        return lambda pairs: tokenize([(b, a) for a, b in pairs])

    monkeypatch.setattr(export, "file_tokenizer", turned)
    monkeypatch.setattr(
        export, "_save_tokenizer", lambda _, own, to: own.tokenizer.save(str(to)) or to
    )


def leave_activation_out(monkeypatch):
    import torch

    whole = export.load_scorer

    def bare(*given, **how):
        model = whole(*given, **how)
        model.activation_fn = torch.nn.Identity()
        return model

    monkeypatch.setattr(export, "load_scorer", bare)  # that of the truth is another name


def cut_shorter(monkeypatch):
    whole = tokens.file_tokenizer

    def short(path, length, *more, **how):
        tokenize = whole(path, length, *more, **how)

        def cut(pairs):
            found = tokenize(pairs)
            return dataclasses.replace(found, mask=found.mask * (np.arange(length) < 12))

        return cut

    monkeypatch.setattr(export, "file_tokenizer", short)
    monkeypatch.setattr(
        export, "_save_tokenizer", lambda _, own, to: own.tokenizer.save(str(to)) or to
    )


@cases
@pytest.mark.parametrize("plant", [forget_types, turn_pairs, leave_activation_out, cut_shorter])
def test_a_reference_that_is_not_the_model_is_caught(
    quick_export, judge_case, monkeypatch, tmp_path, plant
):
    import enginegate.models.truth  # noqa: F401 - before anything is planted

    plant(monkeypatch)
    result, report = judge_case("reranker", "fp32", f"--gate-engine-cache={tmp_path}")
    assert result.ret == 10
    (found,) = report["results"]
    assert found["truth"]["judgement"]["verdict"] == "fail"
    assert found["decision"] == "block"
    named = "without the sigmoid" in found["truth"]["cause"]
    assert named == (plant is leave_activation_out)


@pytest.fixture
def ready(make_case, shapes, judge_case, pytester):
    """Judge the `.onnx` file that somebody made of a reranker's logits, beside its folder."""

    def judge(name, *arguments):
        import torch
        from transformers import AutoModelForSequenceClassification

        folder = make_case(name) / "model"
        project = make_case(name).parent / f"{name}-ready"
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="eager"
        )

        class Logits(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask):
                return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

        shapes.export(Logits(), project / "ready.onnx", output="logits")
        given = {"onnx": "ready.onnx", "tokenizer": str(folder), "truth": str(folder)}
        shapes.write_project(project, output_kind="score", **given)
        return judge_case(project.name, *arguments)

    return judge


@cases
def test_a_ready_file_that_gives_scores_is_judged(ready):
    result, report = ready("reranker-xlm-r")
    assert result.ret == 0
    (found,) = report["results"]
    assert found["truth"]["judgement"]["verdict"] == "pass"
    assert (found["truth"]["by"], found["embedding_verdict"]) == ("predict()", "pass")


def test_a_sigmoid_is_named_as_the_cause(reference):
    logits = np.log(reference / (1 - reference))
    assert score_cause(logits, reference).endswith("without the sigmoid at its end")
    assert score_cause(reference, logits).startswith("its scores have a sigmoid at the end")
    assert score_cause(reference[::-1], reference).startswith("no other cause was sought")


@cases
def test_a_fault_of_an_engine_is_told_in_every_output(judge_case, monkeypatch, pytester):
    kinds = {"html": "r.html", "markdown": "r.md", "text": "r.txt"}
    reports = [f"--gate-report-{kind}={pytester.path / name}" for kind, name in kinds.items()]
    from enginegate.engines.openvino import OpenVinoEngine

    whole = OpenVinoEngine.embed
    monkeypatch.setattr(OpenVinoEngine, "embed", lambda self, batch: 1 - whole(self, batch))
    result, report = judge_case("reranker", "fp32", *reports)
    assert result.ret == 10
    (found,) = report["results"]
    assert (found["decision"], found["reason"]) == ("block", "its scores are wrong")
    result.stdout.fnmatch_lines(["fp32: scores fail: cosine_worst -*", "fp32: worst query: *"])
    for name in kinds.values():
        assert "its scores are wrong" in (pytester.path / name).read_text()


@cases
def test_pairs_are_counted_where_speed_is_told(judge_case, pytester):
    text = pytester.path / "r.txt"
    given = ("-k", "slower", "--gate-batches=4", f"--gate-report-text={text}")
    _, report = judge_case("reranker", "fp32", *given)
    assert report["results"][0]["speeds"]
    written = text.read_text()
    assert "  pairs/s  " in written
    assert " pairs/s, " in written
    assert "texts/s" not in written
