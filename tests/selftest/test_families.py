"""Families of models that need ways of their own; all of them: benchmarks/families.py."""

import pytest

from enginegate.engines.build import NO_MATMULS
from enginegate.models import static

pytestmark = pytest.mark.xdist_group("cases")


def test_static_embeddings_are_averaged_without_special_tokens(judge_case):
    _, report = judge_case("static", "fp32")
    (found,) = report["results"]
    assert (found["truth"]["by"], found["truth"]["judgement"]["verdict"]) == ("encode()", "pass")
    assert found["truth"]["max_abs_relative"] < 1e-5
    assert min(found["accuracy"]["cosines"]) > 0.999999
    assert (found["executed"], found["ran"]) == ({}, "none")
    assert found["flags"] == [f"fp32 requested, {NO_MATMULS}"]


def test_special_tokens_among_static_embeddings_are_refused(judge_case, monkeypatch, tmp_path):
    monkeypatch.setattr("enginegate.models.export.static_tokenizer", lambda model: model.tokenizer)
    result, report = judge_case("static", "fp32", f"--gate-engine-cache={tmp_path}")
    result.stdout.fnmatch_lines(["*its tokenizer.json does not give the tokens that the model*"])
    assert not report["results"]


def test_texts_of_static_embeddings_are_cut_only_where_that_is_asked_for():
    class Cuts:
        length = None

        def enable_truncation(self, length):
            self.length = length

    class Words:
        tokenizer = Cuts()

    for asked, cut_at in ((None, None), (5, 5)):
        static.cut_static([Words()], asked)
        assert Words.tokenizer.length == cut_at
