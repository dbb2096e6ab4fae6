"""Parts of a fleet's run: split alike everywhere, each with its share of the error."""

import json

import pytest

from enginegate.config import Shard
from enginegate.session.estimate import EXPORT_S
from enginegate.session.shards import split
from enginegate.variants import Precision, Variant


def costs(models, seconds):
    return {
        Variant(model, "auto", precision): seconds[precision]
        for model in models
        for precision in seconds
    }


SECONDS = {Precision.FP32: 60, Precision.FP16: 61, Precision.INT8: 100, Precision.BEST: 85}
MODELS = [f"model{number}" for number in range(20)]


@pytest.mark.parametrize("count", [1, 2, 6, 7, 200])
def test_every_variant_is_in_one_part(count):
    found = costs(MODELS, SECONDS)
    parts = split(found, count)
    assert len(parts) == count
    assert sorted(v.id for part in parts for v in part) == sorted(v.id for v in found)


def test_parts_are_the_same_in_whatever_order_they_are_asked_for():
    found = costs(MODELS, SECONDS)
    turned = dict(reversed(found.items()))
    assert split(found, 6) == split(turned, 6)


def test_parts_take_about_as_long_with_each_model_exported_in_few():
    found = costs(MODELS, SECONDS)
    parts = split(found, 6)
    spent = [sum(found[v] for v in p) + EXPORT_S * len({v.model for v in p}) for p in parts]
    assert max(spent) - min(spent) < max(SECONDS.values()) + EXPORT_S
    exports = sum(len({v.model for v in part}) for part in parts)
    assert exports < 2 * len(MODELS)


def test_the_share_of_the_error_sums_to_the_whole():
    assert Shard(1, 6).share * 6 == pytest.approx(1)
    assert Shard(1, 6, 3).share * 18 == pytest.approx(1)


def report(project, *arguments, status=0):
    path = project.path / "report.json"
    path.unlink(missing_ok=True)
    quick = ("--precision=fp32,int8", "-k", "same_embeddings", f"--gate-report-json={path}")
    assert project.run(*quick, *arguments).ret == status
    return json.loads(path.read_text())


def test_shards_run_each_engine_once_and_agree_on_the_plan(project):
    whole = report(project)
    parts = [report(project, f"--gate-shard={number}/2") for number in (1, 2)]
    judged = [[r["variant"]["precision"] for r in part["results"]] for part in parts]
    assert sorted(judged[0] + judged[1]) == ["fp32", "int8"]
    assert all(judged)
    first, second = (part["shard"] for part in parts)
    assert first["plan"] == second["plan"]
    assert [first["number"], second["number"], first["count"]] == [1, 2, 2]
    assert first["variants"] == [["tiny", precision] for precision in judged[0]]
    assert (whole["alarm"], parts[0]["alarm"]) == (0.01, 0.005)
    assert "shard" not in whole


@pytest.mark.parametrize("other", ["--gate-level=warn", "--gate-batches=1", "--gate-threads=2"])
def test_what_would_mean_another_verdict_is_another_plan(project, other):
    mine, theirs = (report(project, "--gate-shard=1/2", *word) for word in ([], [other]))
    assert mine["shard"]["plan"] != theirs["shard"]["plan"]


def test_a_changed_table_is_another_plan(project):
    mine = report(project, "--gate-shard=1/2")
    table = (project.path / "pyproject.toml").read_text()
    project.write("pyproject.toml", table.replace("seq_len = 8", "seq_len = 9"))
    assert report(project, "--gate-shard=1/2")["shard"]["plan"] != mine["shard"]["plan"]


def test_a_shard_with_nothing_left_reports_that(project):
    found = report(project, "--gate-shard=3/3")
    assert found["results"] == found["shard"]["variants"] == []
    result = project.run("--precision=fp32,int8", "--gate-shard=3/3")
    result.stdout.fnmatch_lines(["*shard 3 of 3, 0 of 2 engines: nothing is left for it*"])


@pytest.mark.parametrize("said", ["0/2", "3/2", "2", "1/2x0", "1/2/3", "-1/2", "a/b"])
def test_what_is_no_part_is_refused(project, said):
    result = project.run("--precision=fp32", f"--gate-shard={said}")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*is no part of a whole: write 2/6*"])


def test_a_lost_check_is_that_of_the_shard_that_runs_it(project):
    project.store("fp32,int8")
    for number in (1, 2):
        shard = f"--gate-shard={number}/2"
        result = project.run("--precision=fp32,int8", "--gate-require-baseline", shard)
        assert result.ret == 0, result.stdout.str()
        assert "not judged" not in result.stdout.str()
    (project.path / "test_accuracy.py").unlink()
    (project.path / "test_throughput.py").unlink()
    project.write("test_nothing.py", "def test_nothing(): pass\n")
    said = [
        project.run("--precision=fp32,int8", f"--gate-shard={number}/2").stdout.str()
        for number in (1, 2)
    ]
    assert [text.count("has a baseline, and no result") for text in said] == [1, 1]


def test_a_failed_run_says_why_in_its_report(project):
    assert report(project)["failures"] == []
    project.plant("swapped rows")
    assert report(project, status=10)["failures"] == ["fail"]
