"""Texts of many lengths: buckets, what is judged by length, and where a fault begins."""

import dataclasses
import functools
import json
from collections.abc import Callable

import numpy as np
import pytest

from enginegate.accuracy.judge import EmbeddingJudge
from enginegate.accuracy.lengths import AtLength
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.engines import Engine, embed_all, open_reference
from enginegate.errors import OptionError
from enginegate.models import Workload, probe_of, read_texts, specs_from
from enginegate.models.lengths import Bucketed, bucket_widths, by_length, for_all
from enginegate.models.tokens import in_buckets
from enginegate.models.workload import hashed_tokenizer, make_workload, take
from enginegate.report.wording.accuracy import length_line
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

from .longer import Fault, write_long

INPUTS = {"input_ids": "ids", "attention_mask": "mask"}
LENGTHS = np.unique(np.geomspace(9, 760, 32).astype(int))
FAULTS = {
    "cut at 128": (Fault(cut=128), 129),
    "cut at 200": (Fault(cut=200), 201),
    "cut at 256": (Fault(cut=256), 257),
    "cut at 512": (Fault(cut=512), 513),
    "cut at 600": (Fault(cut=600), 601),
    "positions to 128": (Fault(last=127), 129),
    "positions to 150": (Fault(last=149), 151),
    "positions to 256": (Fault(last=255), 257),
    "positions to 512": (Fault(last=511), 513),
    "positions to 640": (Fault(last=639), 641),
    "a window of 128": (Fault(window=128), 129),
    "a window of 300": (Fault(window=300), 301),
    "a window one short": (Fault(window=399), 400),
    "a window one wide": (Fault(window=401), 401),
    "a window too wide": (Fault(window=2000), 401),
    "positions in bfloat16": (Fault(coarse=True), 258),
    "no vectors from 128 on": (Fault(lost=128), 129),
    "no vectors from 512 on": (Fault(lost=512), 513),
    "not a number at 512": (Fault(broken=512), 513),
    "not a number at 256": (Fault(broken=256), 257),
}


@dataclasses.dataclass(frozen=True)
class Long:
    """Texts of 9 to 760 tokens, and files of a tiny model to judge by them."""

    workload: Workload
    open: Callable[[Fault], Engine]

    def judge(self, engine, precision=Precision.FP32):
        clean = self.open(Fault())
        limits = DEFAULT_LIMITS[precision]
        expected = embed_all(clean, self.workload.evaluation)
        judge = EmbeddingJudge(self.workload, expected, limits, precision, reference=clean.embed)
        found = embed_all(engine, self.workload.evaluation)
        return judge.located(judge.judge(found), found, engine)


@pytest.fixture(scope="module")
def long(load_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(3)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 5000, size)) for size in LENGTHS]
    rng.shuffle(texts)
    words = hashed_tokenizer(load_tiny.VOCABULARY, None, fixed=False)

    def tokenize(some):
        return in_buckets(words(some), "auto", 1024)

    held_out = [f"held out {n}" for n in range(len(texts) // 2)]
    workload = make_workload("long", [*held_out, *texts], tokenize, INPUTS)

    @functools.cache
    def opened(fault):
        path = write_long(load_tiny, folder / f"{hash(fault)}.onnx", fault)
        return open_reference(path, "sentence_embedding", probe_of(workload), 1)

    return Long(workload, opened)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_length_is_found_and_located(long, name):
    fault, begins = FAULTS[name]
    accuracy = long.judge(long.open(fault))
    assert accuracy.judgement.verdict is Verdict.FAIL
    assert accuracy.onset is not None
    assert (accuracy.onset.right, accuracy.onset.tokens) == (begins - 1, begins)
    assert any(f"off from {begins} tokens on: " in reason for reason in accuracy.faults)


def test_a_clean_engine_has_no_fault_of_the_length(long):
    accuracy = long.judge(long.open(Fault()))
    assert accuracy.judgement.verdict is Verdict.PASS
    assert accuracy.onset is None
    assert [one.tokens for one in accuracy.lengths] == [16, 32, 64, 128, 256, 512, 1024]
    assert sum(one.texts for one in accuracy.lengths) == len(LENGTHS)


class Rounded:
    """An engine whose embeddings are off by a share of themselves, alike at all lengths."""

    def __init__(self, engine, share, seed=0):
        self.engine, self.share, self.rng = engine, share, np.random.default_rng(seed)

    def embed(self, batch):
        found = np.array(self.engine.embed(batch))
        noise = self.rng.normal(size=found.shape)
        size = np.linalg.norm(found, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1)[:, None]
        return (found + self.share * size * noise).astype(np.float32)


@pytest.mark.parametrize("share", [3e-7, 1e-3, 5e-2])
def test_rounding_that_is_alike_at_all_lengths_names_none(long, share):
    for seed in range(5):
        assert long.judge(Rounded(long.open(Fault()), share, seed), Precision.INT8).onset is None


def test_words_that_are_off_at_any_length_name_none(long):
    class Words:
        """Texts that begin with some words are far off: those that are long, as it happens."""

        def embed(self, batch):
            found = np.array(long.open(Fault()).embed(batch))
            return np.where(np.isin(batch["input_ids"][:, 0], far)[:, None], -found, found)

    counts = long.workload.evaluation["attention_mask"].sum(axis=1)
    far = long.workload.evaluation["input_ids"][counts > 128, 0]
    accuracy = long.judge(Words())
    assert accuracy.judgement.verdict is Verdict.FAIL
    assert accuracy.onset is None


def test_a_fault_under_rounding_claims_no_more_than_was_seen(long):
    """Cut at 128 in an engine that rounds: it shows some tokens later, and both ends are said."""
    accuracy = long.judge(Rounded(long.open(Fault(cut=128)), 3e-3), Precision.INT8)
    onset = accuracy.onset
    assert onset is not None
    assert onset.right < onset.tokens
    assert 129 <= onset.tokens < 180
    if onset.right + 1 < onset.tokens:
        assert f"from between {onset.right + 1} and {onset.tokens} tokens on" in onset.words


def test_a_bucket_alone_may_fail(long):
    """Embeddings of long texts scaled by 3 %: too few to matter over all, and a fault of theirs."""

    class Scaled:
        def embed(self, batch):
            found = long.open(Fault()).embed(batch)
            lengths = batch["attention_mask"].sum(axis=1)
            return np.where(lengths[:, None] > 500, np.float32(1.1), 1) * found

    accuracy = long.judge(Scaled(), Precision.FP16)
    failed = [one.tokens for one in accuracy.lengths if one.judgement.verdict is Verdict.FAIL]
    assert accuracy.judgement.verdict is Verdict.FAIL
    assert failed
    assert set(failed) <= {512, 1024}
    assert any("beyond the limits: texts of" in reason for reason in accuracy.faults)


def test_a_bucket_of_the_same_texts_is_not_said_to_pass():
    alike = AtLength(16, 9, 16, 3, Judgement(Verdict.PASS), None, None)
    assert length_line(alike) == "3 texts of 9 to 16 tokens: not judged apart: not comparable"
    failed = dataclasses.replace(alike, judgement=Judgement(Verdict.FAIL, ("NaN",)))
    assert length_line(failed) == "3 texts of 9 to 16 tokens: fail: not comparable"


def test_buckets_hold_their_texts():
    counts = np.array([1, 16, 17, 100, 300, 512])
    assert bucket_widths(counts, "auto", 512).tolist() == [16, 16, 32, 128, 512, 512]
    assert bucket_widths(counts, "auto", 514).tolist() == [16, 16, 32, 128, 512, 512]
    assert bucket_widths(np.array([513]), "auto", 514).tolist() == [514]
    assert bucket_widths(np.array([900]), "auto", None).tolist() == [1024]
    assert bucket_widths(counts, [600, 20], 512).tolist() == [20, 20, 20, 600, 600, 600]


@pytest.mark.parametrize("left", [False, True])
def test_rows_taken_are_as_wide_as_the_longest_of_them(left):
    ids = np.array([[1, 0, 0, 0], [2, 2, 0, 0], [3, 3, 3, 3]])
    batch = Bucketed({"ids": ids[:, ::-1] if left else ids}, (1, 2, 4), left=left)
    some = take(batch, np.array([1, 0]))
    assert some["ids"].tolist() == ([[2, 2], [0, 1]] if left else [[2, 2], [1, 0]])
    assert take(some, slice(1, 2))["ids"].tolist() == [[1]]
    assert take(batch, slice(None))["ids"].shape == (3, 4)
    assert [rows.tolist() for rows in by_length(batch, 8)] == [[0], [1], [2]]
    found = for_all(batch, 8, lambda rows: take(batch, rows)["ids"].max(axis=1))
    assert found.tolist() == [1, 2, 3]


def test_no_text_is_cut_and_the_padding_is_that_of_the_buckets(long):
    workload = long.workload
    assert workload.cut == 0
    counts = np.sort(workload.evaluation["attention_mask"].sum(axis=1))
    assert counts.tolist() == LENGTHS.tolist()
    positions = sum(tokens * texts for tokens, texts in workload.buckets.items())
    assert workload.padding == pytest.approx(1 - LENGTHS.sum() / positions)
    assert workload.timed_at(1) == 128
    assert workload.batch(1)["input_ids"].shape == (1, 128)
    assert workload.batch(8)["input_ids"].shape == (8, 1024)
    assert workload.batch(32)["input_ids"].shape == (32, 512)
    large = dataclasses.replace(workload, largest_batch=8)
    assert [large.timed_at(size) for size in (1, 4, 8)] == [128, 128, 1024]


def test_one_length_is_as_before():
    words = hashed_tokenizer(200, 8)
    workload = make_workload("one", [f"text {n}" for n in range(12)], words, INPUTS)
    assert type(workload.evaluation) is dict
    assert (workload.buckets, workload.shape, workload.timed_at(4)) == ({}, (8, 8), 8)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"lengths": [16], "seq_len": 8}, "has seq_len and lengths: give"),
        ({"lengths": []}, 'lengths = [] is not "auto" or a list'),
        ({"lengths": "long"}, "lengths = 'long' is not"),
        ({"lengths": [16, 16]}, "each once"),
        ({"lengths": [1]}, "2 or more"),
    ],
)
def test_lengths_that_cannot_be_meant_are_one_error(table, said, tmp_path):
    with pytest.raises(OptionError) as error:
        specs_from({"mine": {"onnx": "model.onnx", **table}}, tmp_path)
    assert said in str(error.value)


def test_lengths_replace_the_length_of_a_shipped_model(tmp_path):
    found = specs_from({"minilm": {"lengths": "auto"}}, tmp_path)["minilm"]
    assert (found.seq_len, found.lengths) == (None, "auto")


def test_pages_stand_between_the_sentences():
    _, texts = read_texts(None, documents=True)
    assert len(texts) == len(set(texts))
    assert sum(len(text) > 400 for text in texts[:320]) > 48
    assert set(read_texts(None)[1]) <= set(texts)


def use_lengths(project):
    table = (project.path / "pyproject.toml").read_text()
    project.write("pyproject.toml", table.replace("seq_len = 8", "lengths = [16, 64, 256]"))


def test_a_run_tells_what_it_found_by_length(project):
    use_lengths(project)
    result = project.judge("--gate-report-json=report.json", "--gate-report-html=page.html")
    assert result.ret == 0
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert set(found["context"]["buckets"]) == {"16", "64", "256"}
    assert found["context"]["seq_len"] == 256
    assert found["context"]["timed"] == {"1": 64, "4": 256}
    assert [one["tokens"] for one in found["accuracy"]["lengths"]] == [16, 64, 256]
    assert found["accuracy"]["onset"] is None
    said = result.stdout.str()
    assert "in buckets of 16, 64, 256 tokens" in said
    assert "worst length: " in said
    assert "off from" not in said
    assert "By the length of the texts" in (project.path / "page.html").read_text()


def test_a_fault_that_begins_at_a_length_is_told_with_it(project):
    use_lengths(project)
    project.plant("sees 40 tokens")
    result = project.judge("--gate-report-json=report.json", "-k", "same_embeddings")
    assert result.ret == 10
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert (found["accuracy"]["onset"]["right"], found["accuracy"]["onset"]["tokens"]) == (40, 41)
    assert found["decision"] == "block"
    result.stdout.fnmatch_lines(["*off from 41 tokens on*"])
