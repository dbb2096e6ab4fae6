"""Whole runs of the plugin in a user's project: clean ones pass, planted faults are caught."""

import json
import shutil
import sys
from pathlib import Path

import jsonschema
import pytest

from enginegate.verdicts import Exit

SPOILED = {
    "swapped rows": "cosine_worst",
    "nan": "NaN or infinity for 8 texts",
    "head off by 1 %": "gain_error 0.01 > 0.0001",
    "all zero": "gave all zeros",
    "constant": "cosine_worst",
}


def test_a_clean_run_passes_and_prints_its_table(project):
    result = project.judge()
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["*= enginegate =*", "tiny", "decision *executed*", "hold *fp32 *f32 *"]
    )


@pytest.mark.parametrize("fault", SPOILED)
def test_wrong_embeddings_fail_with_the_number_and_are_not_timed(project, fault):
    project.plant(fault)
    result = project.judge()
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines([f"*tiny-faulty-fp32: fail: *{SPOILED[fault]}*"])


def test_a_wrong_pooling_is_caught(project, load_tiny):
    """The engine is built from a file that pools otherwise than the reference."""
    other = load_tiny.write_tiny_onnx(project.path / "first.onnx", pooling="first")
    project.write(
        "conftest.py",
        "import dataclasses, pathlib, pytest\n"
        "from enginegate.engines import register\n"
        "register('faulty', 'faulty:Faulty')\n"
        "@pytest.fixture(scope='session')\n"
        "def built(enginegate, enginegate_variant, exported, workload, reference):\n"
        f"    path = pathlib.Path({str(other)!r})\n"
        "    wrong = dataclasses.replace(exported, onnx=path, sha256='x')\n"
        "    return enginegate.prepare.build(enginegate_variant, wrong, workload, reference)\n",
    )
    result = project.judge()
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines(["*cosine_worst*"])


def test_baselines_round_trip(project):
    """Refresh, pass, degrade, fail with the numbers, accept the offered file, pass."""
    assert project.judge("--gate-refresh-baselines").ret == 0
    project.judge("--gate-require-baseline").assert_outcomes(passed=4)
    project.plant("slow")
    slow = project.judge()
    slow.assert_outcomes(passed=2, failed=2)
    assert slow.ret == Exit.REGRESSED
    slow.stdout.re_match_lines([r".*regressed: [345]\d\.\d % slower .*limit 10.0%"])
    slow.stdout.fnmatch_lines(["to accept: cp -r .enginegate/accept/. baselines and commit it"])
    refused = project.judge("--gate-refresh-baselines")
    assert refused.ret == Exit.REGRESSED
    refused.stdout.fnmatch_lines(["baselines: kept tiny-faulty-fp32 as it was: it regressed*"])
    project.judge()
    accepted = next(project.path.glob(".enginegate/accept/*/tiny.json"))
    shutil.copy(accepted, project.baseline())
    project.judge("--gate-require-baseline").assert_outcomes(passed=4)


def test_a_regression_can_be_accepted_by_the_refresh_itself(project):
    project.store()
    project.plant("slow")
    accepted = project.judge("--gate-refresh-baselines", "--gate-accept-regressions")
    assert accepted.ret == 0
    accepted.stdout.re_match_lines(
        [r"baselines: [\d-]+ -> now  tiny-faulty-fp32: batch 1 [\d.]+ % slower.*; replaced"]
    )
    project.judge("--gate-require-baseline").assert_outcomes(passed=4)


def test_all_is_what_the_backend_offers(project):
    result = project.run("--precision", "all", "--collect-only", "-q", "-k", "embeddings")
    result.stdout.fnmatch_lines(["*tiny-faulty-fp32*", "*tiny-faulty-int8*", "*tiny-faulty-best*"])
    assert "bf16" not in result.stdout.str()


def test_a_refresh_after_a_change_of_threads_prints_no_ratio(project):
    project.store()
    result = project.judge("--gate-refresh-baselines", "--gate-threads", "2")
    result.stdout.fnmatch_lines(["baselines: *tiny-faulty-fp32: not comparable, threads was 1*"])


def test_int8_is_flagged_and_may_ship_so_strict_lets_it_pass(project):
    only = ("--precision=int8", "-k", "same_embeddings")
    for more in ((), ("--strict",)):
        result = project.run(*only, *more)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*int8: embeddings flagged: within its own looser limits*"])
        assert "1 flagged" in result.stdout.str()


def test_what_holds_an_engine_fails_with_strict(project):
    project.plant("another type")
    only = ("-k", "same_embeddings")
    assert project.judge(*only).ret == 0
    strict = project.judge(*only, "--strict")
    assert strict.ret == Exit.EMBEDDINGS
    strict.stdout.fnmatch_lines(["*tiny-faulty-fp32: flagged: *"])


def test_wrong_embeddings_never_become_a_baseline(project):
    project.plant("swapped rows")
    result = project.judge("--gate-refresh-baselines")
    result.stdout.fnmatch_lines(["baselines: kept tiny-faulty-fp32 as it was: embeddings: fail"])
    assert not list(project.path.glob("baselines/*/*"))


def test_a_refresh_of_one_batch_size_writes_nothing(project):
    result = project.judge("--gate-refresh-baselines", "-k", "fp32-4 or embeddings")
    result.stdout.fnmatch_lines(["baselines: kept tiny-faulty-fp32*only batch [[]4[]]*"])


def test_a_refresh_of_one_variant_keeps_the_others(project):
    project.run("--precision", "fp32,int8", "--gate-refresh-baselines")
    before = json.loads(project.baseline().read_text())["variants"]
    project.judge("--gate-refresh-baselines")
    after = json.loads(project.baseline().read_text())["variants"]
    assert set(after) == {"faulty-fp32", "faulty-int8"}
    assert after["faulty-int8"] == before["faulty-int8"]
    assert after["faulty-fp32"] != before["faulty-fp32"]


def test_a_missing_baseline_names_the_command_and_fails_where_required(project):
    project.judge().stdout.fnmatch_lines(["*no baseline*write it with --gate-refresh-baselines*"])
    required = project.judge("--gate-require-baseline")
    required.assert_outcomes(passed=2, failed=2)


def test_another_machines_baseline_is_incomparable_and_passes(project):
    project.store()
    folder = project.baseline().parent
    folder.rename(folder.with_name("another-machine"))
    result = project.judge()
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*incomparable: baselines are of another-machine*"])


def test_another_workload_is_incomparable(project):
    project.store()
    project.write("own.txt", "\n".join(f"a text of my own, number {n}" for n in range(40)))
    result = project.judge("--gate-workload", "own.txt")
    result.stdout.fnmatch_lines(["*incomparable: workload_sha256 was *, is *"])


def test_a_second_run_builds_nothing(project):
    project.judge("-k", "embeddings")
    entries = sorted(p.stat().st_mtime_ns for p in project.path.glob("cache/*/*"))
    project.judge("-k", "embeddings")
    assert sorted(p.stat().st_mtime_ns for p in project.path.glob("cache/*/*")) == entries


def test_a_corrupt_engine_is_built_again_and_says_so(project):
    project.judge("-k", "embeddings")
    (engine,) = project.path.glob("cache/engine/*/engine.onnx")
    engine.write_bytes(engine.read_bytes()[:-7])
    result = project.judge("-k", "embeddings")
    result.assert_outcomes(passed=1, deselected=3)
    result.stdout.fnmatch_lines(["fp32: cached entry*is not valid (engine.onnx*built again"])


def test_reports_are_written(project):
    project.judge("--gate-report-text", "report.txt", "--gate-report-json", "report.json")
    assert "fp32 batch 4: p50 " in (project.path / "report.txt").read_text()
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert found["executed"] == {"f32": 1}
    assert [speed["batch"] for speed in found["speeds"]] == [1, 4]


REPORT_SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("fault", ["", "nan", "swapped rows"])
def test_the_json_report_is_as_its_schema_says(project, fault):
    project.store()
    project.plant(fault)
    project.run("--precision", "fp32,int8", "--gate-blame", "--gate-report-json", "report.json")
    report = json.loads((project.path / "report.json").read_text())
    jsonschema.Draft202012Validator.check_schema(REPORT_SCHEMA)
    jsonschema.validate(report, REPORT_SCHEMA)
    assert len(report["results"]) == 2


def test_a_report_with_another_verdict_breaks_the_schema(project):
    project.judge("--gate-report-json", "report.json", "-k", "embeddings")
    report = json.loads((project.path / "report.json").read_text())
    report["results"][0]["speed_verdict"] = "splendid"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, REPORT_SCHEMA)


def test_pytest_benchmark_keeps_working(project):
    project.judge("--benchmark-json", "bench.json")
    benchmarks = json.loads((project.path / "bench.json").read_text())["benchmarks"]
    assert {b["extra_info"]["variant"] for b in benchmarks} == {"tiny-faulty-fp32"}
    disabled = project.judge("--benchmark-disable")
    disabled.assert_outcomes(passed=2, skipped=2)


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["-q"], 4),
        (["-v"], 4),
        (["--color=no"], 4),
        (["-x"], 4),
        (["-k", "embeddings"], 1),
        (["--lf"], 4),
        (["-p", "no:cacheprovider"], 4),
    ],
)
def test_pytests_own_options_work(project, arguments, passed):
    result = project.judge(*arguments)
    assert result.parseoutcomes()["passed"] == passed


def test_without_a_terminal(project):
    assert project.judge("-p", "no:terminal", "--gate-report-json", "report.json").ret == 0
    assert (project.path / "report.json").exists()


def test_collect_only_builds_nothing(project):
    result = project.judge("--collect-only", "-q")
    result.stdout.fnmatch_lines(
        ["*test_same_embeddings[[]tiny-faulty-fp32[]]", "*4 tests collected*"]
    )
    assert not (project.path / "cache").exists()


def test_without_a_precision_tests_of_engines_are_skipped_with_the_reason(project):
    result = project.run("-rs")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*no precision asked for: pytest --precision fp16*"])


def test_a_model_given_by_a_fixture(project):
    project.write("pyproject.toml", '[tool.enginegate]\nengine_cache = "cache"\nbatches = [1]\n')
    project.write(
        "conftest.py",
        "import pytest\n"
        "from enginegate.models import Kind, ModelSpec\n"
        "@pytest.fixture(scope='session')\n"
        "def model(pytestconfig):\n"
        "    path = pytestconfig.rootpath / 'tiny.onnx'\n"
        "    return ModelSpec('mine', Kind.ONNX, str(path), vocab_size=200, seq_len=8)\n",
    )
    result = project.judge("--gate-backend", "onnxruntime", "-k", "embeddings")
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.fnmatch_lines(["mine", "hold *fp32 *1.000000*"])


def test_two_models_under_one_overridden_fixture_are_refused(project):
    conftest = (project.path / "conftest.py").read_text()
    project.write(
        "conftest.py",
        conftest + "\n@pytest.fixture(scope='session')\n"
        "def model(enginegate):\n"
        "    return enginegate.options.specs['tiny']\n",
    )
    result = project.judge("--gate-model", "tiny,minilm", "-k", "embeddings")
    result.assert_outcomes(passed=1, errors=1, deselected=6)
    result.stdout.fnmatch_lines(["two models of this run are both named tiny-faulty-fp32*"])


def test_no_model_at_all_is_one_clear_message(project):
    project.write("pyproject.toml", "[tool.enginegate]")
    result = project.judge("--gate-backend", "onnxruntime", "-k", "embeddings")
    result.assert_outcomes(errors=1, deselected=5)
    result.stdout.fnmatch_lines(["no model is named: use --gate-model*"])


def test_the_ready_suite_needs_no_test_files(project):
    for name in ("test_accuracy.py", "test_throughput.py"):
        (project.path / name).unlink()
    without = project.judge()
    assert without.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    hint = "no tests are here; the ready ones: pytest --pyargs enginegate.suite --precision fp32"
    without.stdout.fnmatch_lines([hint])
    assert hint not in project.judge("-k", "nothing").outlines
    project.judge("--pyargs", "enginegate.suite").assert_outcomes(passed=4, skipped=3)


def test_nothing_heavy_is_imported_for_a_project_that_merely_has_the_plugin(pytester):
    pytester.makepyfile("def test_it(): pass")
    pytester.makeconftest(
        "import sys\n"
        "def pytest_unconfigure():\n"
        "    heavy = 'torch transformers onnxruntime openvino nncf numpy scipy onnx tokenizers'\n"
        "    print('loaded', [n for n in heavy.split() if n in sys.modules])\n"
    )
    result = pytester.run(sys.executable, "-m", "pytest", "--collect-only", "-s", "-p", "no:anyio")
    result.stdout.fnmatch_lines(["loaded []"])


def test_dynamic_int8_fails_for_depending_on_its_batch(project):
    conftest = (project.path / "conftest.py").read_text()
    project.write("conftest.py", conftest + '\nregister("dynamic", "faulty:Dynamic")\n')
    result = project.run("--precision", "int8", "--gate-backend", "dynamic", "-rs")
    result.assert_outcomes(failed=1, skipped=2)  # and one flagged
    assert result.ret == Exit.EMBEDDINGS
    result.stdout.fnmatch_lines(
        [
            "*int8: fail: an embedding changes with its batch by * of the text *",
            "block *int8 *",
            "*not timed, its embeddings are wrong: an embedding changes with its batch*",
        ]
    )


def test_an_engine_that_swaps_rows_shows_its_worst_text(project):
    project.plant("swapped rows")
    result = project.judge("--gate-report-json", "report.json")
    result.stdout.fnmatch_lines(['fp32: worst text: "*" (number *, * tokens), cosine *'])
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert len(found["accuracy"]["cosines"]) == 256
    assert len(found["accuracy"]["worst_texts"]) == 10
    assert found["accuracy"]["retrieval"]["recall_at_10"]["value"] < 1
    assert found["accuracy"]["invariance"] is None


RESTLESS = """
import faulty
faulty.Restless.builds = 0  # of this run: where the module was loaded before, it stays
register("restless", "faulty:Restless")
"""


@pytest.mark.parametrize("fault", ["", "bad rebuild"])
def test_further_builds_are_compared_and_judged(project, fault):
    conftest = (project.path / "conftest.py").read_text()
    project.write("conftest.py", conftest + RESTLESS)
    project.plant(fault)
    arguments = ("--gate-backend=restless", "--gate-rebuilds=2", "-k", "embeddings")
    result = project.judge(*arguments, "--gate-report-json=report.json")
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert len(found["accuracy"]["determinism"]["rebuilds"]) == 2
    assert found["accuracy"]["determinism"]["bitwise"]
    if fault:
        assert result.ret == Exit.EMBEDDINGS
        result.stdout.fnmatch_lines(["*fail: build 2: cosine_*"])
    else:
        assert result.ret == 0
        result.stdout.fnmatch_lines(
            ["fp32: the same input twice: the same bits; builds differ by *"]
        )


def test_the_table_of_pytest_benchmark_is_shown_where_it_is_asked_for(project):
    project.write("test_own.py", "def test_own(benchmark):\n    benchmark(int)\n")
    quiet = project.judge().stdout.str()
    assert "test_own " in quiet
    assert "test_not_slower[tiny-faulty-fp32-1] " not in quiet
    asked = project.judge("--benchmark-columns=min").stdout.str()
    assert "test_not_slower[tiny-faulty-fp32-1] " in asked
    monkey = project.judge("-p", "no:benchmark", "--ignore=test_own.py")
    monkey.assert_outcomes(passed=2, skipped=2)
