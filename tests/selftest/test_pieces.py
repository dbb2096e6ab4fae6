"""The small pieces: files, store, workload, timing."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from enginegate.baselines.store import Baseline
from enginegate.cache import Store
from enginegate.errors import FileError, StoreError
from enginegate.files import parse_json, readable_json, write_atomic
from enginegate.machine.fingerprint import Machine
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.results import FP32_THERE

from .reports import context

ROLES = {"input_ids": "ids", "attention_mask": "mask"}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, fill_disk):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    fill_disk()
    with pytest.raises(FileError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readable_json_keeps_lists_of_numbers_on_a_line_and_comes_back():
    value = {"b": [1.5, 2.5], "a": {"text": "[1,\n2]", "empty": []}}
    text = readable_json(value)
    assert '"b": [ 1.5, 2.5 ]' in text
    assert json.loads(text) == value


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_json_with_nan_is_refused(text):
    with pytest.raises(ValueError, match="is not JSON"):
        parse_json(text)


def test_the_store_builds_once_and_says_what_it_rebuilds(tmp_path):
    store = Store(tmp_path)
    built = []

    def build(folder):
        built.append(folder)
        (folder / "engine").write_text("engine")
        return {"hint": "f32"}

    first = store.get_or_build("engine", {"a": 1}, build)
    again = store.get_or_build("engine", {"a": 1}, build)
    assert (first.built, again.built, len(built)) == (True, False, 1)
    assert again.properties == {"hint": "f32"}
    (again.folder / "engine").write_text("rotten")
    rebuilt = store.get_or_build("engine", {"a": 1}, build)
    assert "engine does not match its hash" in rebuilt.note
    assert (rebuilt.folder / "engine").read_text() == "engine"


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        Store(tmp_path).get_or_build("engine", {}, build)
    assert list((tmp_path / "engine").iterdir()) == []


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--gate-engine-cache"):
        Store(tmp_path / "file").get_or_build("engine", {}, lambda folder: {})


def test_calibration_and_evaluation_texts_are_disjoint():
    texts = default_corpus()
    workload = make_workload("corpus", texts, hashed_tokenizer(28996, 16), ROLES)
    assert workload.shape == (256, 16)
    assert not set(workload.texts) & set(texts[:128])
    assert workload.calibration["input_ids"].shape == (128, 16)


def test_the_workloads_hash_changes_with_its_tokens():
    texts = default_corpus()
    hashes = {
        make_workload("w", t, hashed_tokenizer(v, s), ROLES).sha256
        for t, v, s in [(texts, 100, 16), (texts[1:], 100, 16), (texts, 101, 16), (texts, 100, 8)]
    }
    assert len(hashes) == 4


def test_hashed_words_stay_in_the_vocabulary_and_zero_pads():
    found = hashed_tokenizer(50, 6)(["one two", "a b c d e f g h"])
    ids, mask = found.ids, found.mask
    assert found.cut == 1
    assert ids.max() < 50
    assert mask.tolist() == [[1, 1, 0, 0, 0, 0], [1] * 6]
    assert (ids[mask == 0] == 0).all()
    assert (ids[mask == 1] > 0).all()


def test_a_batch_larger_than_the_workload_repeats_it():
    workload = make_workload("w", default_corpus()[:12], hashed_tokenizer(99, 4), ROLES)
    ids = workload.batch(20)["input_ids"]
    assert ids.shape == (20, 4)
    assert (ids[8:16] == ids[:8]).all()


def test_machines_that_differ_in_anything_that_matters_have_different_ids():
    base = ("A CPU 25/17", 2, ("avx2",), "linux-x86_64")
    ids = {
        Machine(*base).id,
        Machine("B CPU", *base[1:]).id,
        Machine(base[0], 4, *base[2:]).id,
        Machine(*base[:2], ("avx2", "avx512f"), base[3]).id,
    }
    assert len(ids) == 4
    assert Machine(*base).id.startswith("a-cpu-25-17-2c-")


def test_cosine_helpers_are_finite_for_tiny_values():
    from enginegate.accuracy.deltas import compare

    tiny = np.full((3, 4), 1e-20, dtype=np.float32) * np.arange(1, 4, dtype=np.float32)[:, None]
    assert math.isfinite(compare(tiny, tiny).cosine_worst)


def test_a_baseline_beside_another_control_is_not_compared(tmp_path):
    mine = context()
    stored = {name: value for name, value in asdict(mine).items() if name != "control"}  # of before
    baseline = Baseline(tmp_path, stored, {}, {})
    assert baseline.difference(mine) == ""
    said = "control was the reference, is fp32 on the same GPU"
    assert baseline.difference(context(control=FP32_THERE)) == said
