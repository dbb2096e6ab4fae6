"""A user's own queries, documents and labelled pairs: read, refused, judged."""

import json

import numpy as np
import pytest

from enginegate.accuracy.collection import Collection, Pairs, read_collection, read_pairs
from enginegate.accuracy.labels import compare_pairs, sts_violations
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.accuracy.retrieval import rank_violations, unsure
from enginegate.accuracy.user_texts import UserData, UserTexts
from enginegate.errors import WorkloadError
from enginegate.models.workload import read_texts
from enginegate.variants import Precision
from enginegate.verdicts import Exit

LIMITS = DEFAULT_LIMITS[Precision.INT8]
TEXTS = [
    *({"role": "query", "id": f"q{n}", "text": f"what is thing number {n}"} for n in range(12)),
    *({"role": "document", "id": f"d{n}", "text": f"thing number {n} is this"} for n in range(30)),
]
JUDGED = [{"query": f"q{n}", "document": f"d{n}", "relevance": 1 + n % 2} for n in range(12)]
PAIRS = [{"a": f"text {n}", "b": f"text {n + 1}", "score": n % 5} for n in range(20)]


def written(path, lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


@pytest.fixture
def workload(tmp_path):
    return tmp_path / "own.jsonl"


def test_queries_documents_and_relevance_are_read(workload):
    written(workload, [*TEXTS, *JUDGED])
    found = read_collection(workload)
    assert found
    assert found.gains is not None
    assert found.queries[3] == "what is thing number 3"
    assert len(found.documents) == 30
    assert found.gains.shape == (12, 30)
    assert found.gains[3, 3] == 2
    assert found.gains.sum() == 18
    name, texts = read_texts(workload)
    assert (name, len(texts)) == ("own.jsonl", 42)


def test_without_relevance_or_without_roles(workload):
    written(workload, TEXTS)
    unjudged = read_collection(workload)
    assert unjudged
    assert unjudged.gains is None
    written(workload, ['"a plain text"', {"text": "another"}])
    assert read_collection(workload) is None
    assert read_collection(workload.with_suffix(".txt")) is None


REFUSED = {
    "line 43 judges a query 'q99' that is not in the file": [
        *TEXTS,
        {"query": "q99", "document": "d1", "relevance": 1},
    ],
    "line 43 judges a document 'x' that is not": [
        *TEXTS,
        {"query": "q1", "document": "x", "relevance": 1},
    ],
    "line 43 has relevance None, not a number": [*TEXTS, {"query": "q1", "document": "d1"}],
    "line 43 is not JSON: NaN is not JSON": [
        *TEXTS,
        '{"query": "q1", "document": "d1", "relevance": NaN}',
    ],
    "line 43 has no text": [*TEXTS, {"role": "query", "id": "new"}],
    "line 43 has the id 'q1' of another query": [
        *TEXTS,
        {"role": "query", "id": "q1", "text": "again"},
    ],
    'line 43 has no role: give "role": "query" or "document"': [*TEXTS, {"text": "no role"}],
    "line 1 has no role": [{"role": "passage", "text": "x"}, *TEXTS],
    "holds 1 queries and 30 documents: at least 8": TEXTS[11:],
    "relevance must be 0 or more": [*TEXTS, {"query": "q1", "document": "d1", "relevance": -1}],
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_bad_collection_is_one_error_with_file_and_line(workload, message):
    written(workload, REFUSED[message])
    with pytest.raises(WorkloadError, match=r"own\.jsonl") as caught:
        read_collection(workload)
    assert message in str(caught.value)


def test_pairs_are_read(workload):
    pairs = read_pairs(written(workload, PAIRS))
    assert pairs.a[1] == "text 1"
    assert pairs.b[1] == "text 2"
    assert pairs.scores[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*PAIRS, {"a": "x", "score": 1}], "line 21 has no b"),
        ([*PAIRS, {"a": "x", "b": "y"}], "line 21 has score None"),
        ([*PAIRS, {"a": "x", "b": "y", "score": "3"}], "line 21 has score '3'"),
        ([*PAIRS, '{"a": "x", "b": "y", "score": NaN}'], "line 21 is not JSON: NaN"),
        ([*PAIRS, '"x"'], "line 21 is not an object"),
        (PAIRS[:3], "holds 3 pairs"),
        ([x | {"score": 1} for x in PAIRS], "20 pairs with 1 different scores"),
    ],
)
def test_bad_pairs_are_one_error_with_file_and_line(workload, lines, message):
    with pytest.raises(WorkloadError, match=r"own\.jsonl") as caught:
        read_pairs(written(workload, lines))
    assert message in str(caught.value)


def vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)


def own_texts(data):
    return UserTexts(data, {}, vectors(len(data.rows)))


@pytest.fixture
def searched():
    """40 queries whose one relevant document is the nearest."""
    queries = tuple(f"q{n}" for n in range(40))
    documents = tuple(f"d{n}" for n in range(120))
    own = own_texts(UserData(Collection(queries, documents, np.eye(40, 120))))
    own.expected[40:80] = own.expected[:40] + 0.1
    return own


def test_a_search_that_finds_the_same_loses_no_ndcg(searched):
    found = searched.rankings(searched.expected.copy())
    assert found.ndcg_at_10.reference == pytest.approx(1)
    assert found.ndcg_at_10.change.value == 0
    assert rank_violations(found, LIMITS) == ()


def test_documents_in_each_others_place_break_the_limit_with_the_numbers(searched):
    spoiled = searched.expected.copy()
    spoiled[40:60] = np.roll(spoiled[40:60], 1, axis=0)
    found = searched.rankings(spoiled)
    assert found.ndcg_at_10.candidate < 0.8
    assert any(
        text.startswith("ndcg_loss > 0.015: NDCG@10 1") for text in rank_violations(found, LIMITS)
    )


def test_one_query_that_loses_is_within_the_interval(searched):
    spoiled = searched.expected.copy()
    spoiled[40] += 0.4
    found = searched.rankings(spoiled)
    assert not any(text.startswith("ndcg_loss") for text in rank_violations(found, LIMITS))


@pytest.fixture
def labelled():
    pairs = Pairs(
        tuple(f"a{n}" for n in range(200)), tuple(f"b{n}" for n in range(200)), np.zeros(200)
    )
    return own_texts(UserData(pairs=pairs))


def test_what_is_retained_of_the_agreement_with_labels(labelled):
    rng = np.random.default_rng(1)
    expected = rng.uniform(size=200)
    scores = expected + rng.normal(scale=0.2, size=200)
    same = compare_pairs(expected, expected, scores)
    assert (same.retained, same.low, same.high) == (1, 1, 1)
    assert sts_violations(same, LIMITS) == ()
    spoiled = compare_pairs(expected + rng.normal(scale=0.5, size=200), expected, scores)
    assert spoiled.high
    assert spoiled.high < 0.98
    (said,) = sts_violations(spoiled, LIMITS)
    assert said.startswith("sts_retained < 0.98: Spearman 0.")


def test_labels_that_the_reference_knows_nothing_of_decide_nothing():
    rng = np.random.default_rng(2)
    found, expected, scores = rng.normal(size=(3, 100))
    sts = compare_pairs(found, expected, scores)
    assert sts.retained is None
    assert sts_violations(sts, LIMITS) == ()
    assert "has none to retain" in sts.words


def test_pairs_are_looked_up_by_their_texts(labelled):
    sts = labelled.agreement(labelled.expected.copy())
    assert sts.reference == sts.candidate
    assert labelled.rankings(labelled.expected) is None


def test_a_whole_run_with_own_data(project):
    written(project.path / "own.jsonl", [*TEXTS, *JUDGED])
    written(project.path / "pairs.jsonl", [x | {"score": n} for n, x in enumerate(PAIRS)])
    result = project.judge(
        "--gate-workload=own.jsonl",
        "--gate-sts=pairs.jsonl",
        "-k",
        "embeddings",
        "--gate-report-json=report.json",
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "fp32: 12 queries over 30 documents: NDCG@10 *",
            "fp32: labelled pairs: Spearman *on 20 pairs*",
        ]
    )
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert found["accuracy"]["retrieval"]["queries"] == 12
    assert found["accuracy"]["sts"]["pairs"] == 20


def test_a_bad_file_ends_the_run_with_its_line(project):
    written(project.path / "own.jsonl", [*TEXTS, {"query": "q99", "document": "d1"}])
    result = project.judge("--gate-workload=own.jsonl")
    assert result.ret != 0
    assert result.ret != Exit.EMBEDDINGS
    result.stderr.fnmatch_lines(["*own.jsonl, line 43 judges a query 'q99'*"])


def test_a_fall_of_ndcg_that_few_queries_cannot_prove_is_said(searched):
    spoiled = searched.expected.copy()
    spoiled[40:42] = spoiled[[41, 40]]
    found = searched.rankings(spoiled)
    assert found.ndcg_at_10.change.value < -LIMITS.ndcg_loss <= found.ndcg_at_10.change.high
    assert not any(text.startswith("ndcg") for text in rank_violations(found, LIMITS))
    assert any(text.startswith("ndcg_loss: -0.0") for text in unsure(found, LIMITS))
