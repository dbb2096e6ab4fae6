"""A vector for every token: known answers, planted faults, and clean runs that pass."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from enginegate.accuracy.judge import EmbeddingJudge
from enginegate.accuracy.limits import limits_for
from enginegate.accuracy.multi import best_matches, multi_cause, token_cosines
from enginegate.accuracy.retrieval import Vectors
from enginegate.errors import ModelError, OptionError
from enginegate.models.checkpoints import as_found, check_folder
from enginegate.models.export import _late
from enginegate.models.late import Late, aligned, used
from enginegate.models.lengths import AUTO
from enginegate.models.spec import Kind, ModelSpec, OutputKind, specs_from
from enginegate.models.tokens import DOCUMENT, QUERY, Encoded, TokenSettings
from enginegate.models.workload import Searched
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

from .test_quality import workload_of

cases = pytest.mark.xdist_group("cases")
TEXTS, PLACES, WIDTH = 32, 12, 24
NAMES = tuple(f"text {number}" for number in range(TEXTS))


def _kept():
    """Every text has another length; the third token of a document is not searched."""
    lengths = np.repeat(np.arange(TEXTS) % 6 + 6, 2)
    kept = np.arange(PLACES) < lengths[:, None]
    kept[1::2, 2] = False
    return kept


KEPT = _kept()
ROWS = Searched(NAMES, KEPT, np.tile(np.arange(PLACES), (2 * TEXTS, 1)), "t{}".format)
WORKLOAD = dataclasses.replace(
    workload_of([name for name in NAMES for _ in range(2)]), kind=OutputKind.MULTI, searched=ROWS
)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def hidden():
    """Vectors before they are scaled; what a search does not use has some too."""
    return np.random.default_rng(0).normal(size=(2 * TEXTS, PLACES, WIDTH))


@pytest.fixture(scope="module")
def reference(hidden):
    return used(unit(hidden), KEPT)


def judged(found, reference, precision=Precision.FP32):
    limits = limits_for(precision, {}, OutputKind.MULTI)
    return EmbeddingJudge(WORKLOAD, reference, limits, precision).judge(found.astype(np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_clean_engines_pass(hidden, reference, seed):
    """Whatever they give where no search looks."""
    rng = np.random.default_rng(seed)
    found = unit(hidden + 1e-6 * rng.normal(size=hidden.shape))
    found[~KEPT] = rng.normal(size=WIDTH)
    accuracy = judged(found, reference)
    assert (accuracy.judgement.verdict, accuracy.faults) == (Verdict.PASS, ())
    assert accuracy.worst_token.tokens == KEPT.sum()


def exchanged(vectors):
    found = vectors.copy()
    found[[0, 2]] = found[[2, 0]]
    return found


def lost(vectors):
    found = vectors.copy()
    found[5, 1] = 0
    return found


FAULTS = {
    "the projection left out": lambda x: unit(np.concatenate([x, x], axis=2)),
    "not scaled to length 1": lambda x: x,
    "padding taken into the vectors": lambda x: unit(x + 0.1 * x.mean(axis=1, keepdims=True)),
    "a wrong marker before documents": lambda x: unit(x + np.array([[[0.0]], [[0.2]]] * TEXTS)),
    "each token shifted by one": lambda x: np.roll(unit(x), 1, axis=1),
    "texts exchanged": lambda x: exchanged(unit(x)),
    "a token lost": lambda x: lost(unit(x)),
    "one vector a text": lambda x: unit(x.mean(axis=1)),
    "the same for every token": lambda x: unit(x.mean(axis=1, keepdims=True) + 0 * x),
    "not a number": lambda x: np.where(np.arange(WIDTH) > 0, unit(x), np.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_planted_fault_fails(hidden, reference, fault, precision):
    accuracy = judged(FAULTS[fault](hidden), reference, precision)
    assert accuracy.judgement.verdict is Verdict.FAIL


def test_the_worst_token_is_named(hidden, reference):
    found = judged(lost(unit(hidden)), reference).worst_token
    assert (found.token, found.place, found.role, found.text) == ("t1", 1, "document", "text 2")
    assert found.words.startswith('worst of 504 tokens: "t1", token 1 of the document "text 2"')


def test_maxsim_of_a_hand_made_pair():
    """Zeros are no tokens: 0 would be the best match of the second token of the query."""
    query = np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    document = np.array([[[0.6, -0.8], [0.8, -0.6], [0.0, 0.0]]])
    assert best_matches(Vectors(query, document)) == pytest.approx((0.8 - 0.6) / 2)
    assert token_cosines(query, document)[0] == pytest.approx([0.6, -0.6, 1.0])


def test_each_query_is_searched_in_the_documents_of_the_others(reference):
    found = best_matches(Vectors(reference))
    assert found.shape == (TEXTS, TEXTS - 1)
    whole = best_matches(Vectors(reference[::2], reference[1::2]))
    assert found[3] == pytest.approx(np.delete(whole[3], 3))


def all_used(truth):
    found = truth.copy()
    found[~KEPT] = 1
    return found


CAUSES = {
    "it uses 6": lambda x: used(all_used(x), KEPT | (np.arange(2 * TEXTS) < 1)[:, None]),
    'leaves out 1 tokens, first "t1" at place 1 of a document': lost,
    "the model scales each vector to length 1, and it does not": lambda x: 3 * x,
    "each vector stands one place behind its token": lambda x: used(np.roll(x, 1, axis=1), KEPT),
    "other vectors; no other cause": lambda x: used(unit(x[:, :, ::-1] + 1e-9), KEPT),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_is_named(reference, cause):
    found = CAUSES[cause](reference)
    if "behind" in cause:
        gap = reference.any(axis=2) & ~found.any(axis=2)
        found[gap] = WIDTH**-0.5
    assert cause in multi_cause(found, reference, ROWS)


def encoded():
    ids = np.array([[2, 7, 9, 3, 0, 0]])
    return Encoded(ids, (ids > 0).astype(np.int64), np.zeros_like(ids), 0)


def test_queries_are_filled_up_and_words_of_documents_left_out():
    late = Late(skipped=(9,), fill=5, filler=4)
    query, document = (late.applied(encoded(), role) for role in (QUERY, DOCUMENT))
    assert query.ids.tolist() == [[2, 7, 9, 3, 4, 0]]
    assert query.mask.tolist() == [[1, 1, 1, 1, 0, 0]]  # not attended to, and searched
    assert np.asarray(query.kept).tolist() == [[True, True, True, True, True, False]]
    assert np.asarray(document.kept).tolist() == [[True, True, False, True, False, False]]
    attending = dataclasses.replace(late, attend=True).applied(encoded(), QUERY)
    assert attending.mask.tolist() == [[1, 1, 1, 1, 1, 0]]
    assert (late.most(QUERY), late.most(DOCUMENT)) == (5, None)


def test_rows_are_aligned_on_the_side_of_the_text():
    rows = [np.array([1, 2]), np.array([1, 2, 3, 4])]
    assert aligned(rows, 3, "right").tolist() == [[1, 2, 0], [1, 2, 3]]
    assert aligned(rows, 3, "left").tolist() == [[0, 1, 2], [2, 3, 4]]


@pytest.mark.parametrize("key", [{"pooling": "mean"}, {"dims": [4]}, {"stored": ["int8"]}])
def test_keys_of_dense_embeddings_are_refused(tmp_path, key):
    with pytest.raises(OptionError, match="gives multi outputs: it is about dense ones"):
        specs_from({"mine": {"transformers": "x", "output_kind": "multi", **key}}, tmp_path)


@cases
def test_a_colbert_is_found_to_be_one(make_case):
    folder = make_case("colbert") / "model"
    spec = ModelSpec("mine", Kind.SENTENCE_TRANSFORMERS, str(folder))
    found = as_found(spec, folder)
    assert found.output_kind is OutputKind.MULTI
    check_folder(found, folder)
    with pytest.raises(ModelError, match=r"is a per-token model \(Multi.*output_kind = \"multi\""):
        as_found(dataclasses.replace(spec, output_kind=OutputKind.DENSE), folder)


def test_buckets_of_lengths_are_refused(tmp_path):
    spec = ModelSpec("mine", Kind.ONNX, "mine.onnx", output_kind=OutputKind.MULTI, lengths=AUTO)
    with pytest.raises(ModelError, match=r"`lengths` is not offered for .* say `seq_len` instead"):
        _late(spec, TokenSettings(), tmp_path, tmp_path / "tokenizer.json")


@cases
@pytest.mark.parametrize("name", ["colbert", "colbert-pylate"])
def test_a_colbert_is_judged_from_its_folder(quick_export, judge_case, name):
    result, report = judge_case(name, "fp32")
    assert result.ret == 0
    (found,) = report["results"]
    truth, worst = found["truth"], found["accuracy"]["worst_token"]
    assert (truth["by"], truth["judgement"]["verdict"]) == (
        "encode_query() and encode_document()",
        "pass",
    )
    assert (found["embedding_verdict"], found["context"]["output_kind"]) == ("pass", "multi")
    assert worst["cosine"] > 0.99999
    result.stdout.fnmatch_lines(["fp32: tokens: worst of * tokens: *"])


def without_skipped(folder):
    path = folder / "2_MultiVectorMask" / "config.json"
    path.write_text(json.dumps({"skiplist_words": []}))


def without_filling(folder):
    path = folder / "sentence_bert_config.json"
    said = {k: v for k, v in json.loads(path.read_text()).items() if k != "query_expansion"}
    path.write_text(json.dumps(said))


def other_marker(folder):
    path = folder / "config_sentence_transformers.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "prompts": {"query": "[Q] ", "document": "[Q] "}}))


READY = {
    "clean": (None, 1, "is the model"),
    "skipped tokens taken in": (without_skipped, 1, "it uses * tokens, first *, and the model"),
    "queries not filled up": (without_filling, 1, "it leaves out * tokens, first *, and the model"),
    "a wrong marker": (other_marker, 1, "other vectors; no other cause was sought"),
    "not scaled": (None, 3, "the model scales each vector to length 1, and it does not"),
}


@cases
@pytest.mark.parametrize("name", READY)
def test_a_ready_file_is_compared_with_its_truth(shapes, make_case, judge_case, name):
    """Its tokens are those that the files beside its tokenizer say."""
    import torch
    from sentence_transformers import MultiVectorEncoder

    from enginegate.models.late import token_vectors

    spoil, factor, said = READY[name]
    folder = make_case("colbert").parent / f"colbert-ready-{list(READY).index(name)}"
    shutil.copytree(make_case("colbert") / "model", folder / "files")
    if spoil:
        spoil(folder / "files")

    class Vectors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = MultiVectorEncoder(str(make_case("colbert") / "model"), device="cpu")

        def forward(self, ids, mask):
            return token_vectors(self.model, ids, mask) * factor

    shapes.export(Vectors(), folder / "model.onnx", output="vectors")
    keys = {"onnx": "model.onnx", "output_kind": "multi", "tokenizer": str(folder / "files")}
    shapes.write_project(folder, truth=str(make_case("colbert") / "model"), **keys)
    _, report = judge_case(folder.name, "fp32")
    (found,) = report["results"]
    (reason,) = found["truth"]["judgement"]["reasons"]
    assert found["truth"]["judgement"]["verdict"] == ("pass" if name == "clean" else "fail")
    for part in said.split("*"):
        assert part in reason
