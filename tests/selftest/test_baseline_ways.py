"""What a run is compared with: the baseline's own engine, one built again, or stored ratios."""

import json
import shutil
import subprocess

import jsonschema
import pytest

from enginegate.baselines.history import Note, Series, read_history
from enginegate.baselines.store import _schema
from enginegate.errors import EngineError
from enginegate.verdicts import Exit

TABLE = """
[tool.enginegate]
backend = "onnxruntime"
engine_cache = "cache"
batches = [1]
replicates = 3
sessions = 1
measure_s = 0.3
max_time_per_variant = 6
max_slowdown = 3
max_slowdown_p99 = 9
[tool.enginegate.models.tiny]
onnx = "tiny.onnx"
vocab_size = 200
seq_len = 8
[tool.pytest.ini_options]
pythonpath = ["."]
"""


@pytest.fixture
def stored(project, monkeypatch, kept):
    """A project in git, with baselines of the shipped backend that are committed."""
    monkeypatch.setattr("enginegate.speed.timing.TURN_S", 0.006)  # its time is real
    if not (kept / "ways").exists():
        begin(project)
        shutil.copytree(project.path, kept / "ways")
    shutil.copytree(kept / "ways", project.path, dirs_exist_ok=True)
    return project


def begin(project):
    """Make the project and its baselines, and commit both."""
    project.write("pyproject.toml", TABLE)
    project.write("conftest.py", "")
    project.write(
        ".gitignore", "cache/\n__pycache__/\n.pytest_cache/\n*.json\n!baselines/**/*.json\n"
    )
    git(project, "init", "--quiet")
    commit(project)
    assert project.judge("--gate-refresh-baselines").ret == 0
    commit(project)


def git(project, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *arguments], cwd=project.path, check=True, capture_output=True)


def commit(project):
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "more")


def change(project, load_tiny):
    """Other weights: another engine, and a reference of its own."""
    load_tiny.write_tiny_onnx(project.path / "tiny.onnx", head_gain=1.5)


def edit(project, edited):
    content = json.loads(project.baseline().read_text())
    edited(content["variants"]["onnxruntime-fp32"])
    project.baseline().write_text(json.dumps(content))


def report(project, *arguments):
    result = project.judge("--gate-report-json=report.json", *arguments)
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    return result, found


def test_the_schema_of_baselines_is_a_schema():
    """Each read takes it as it is."""
    jsonschema.Draft202012Validator.check_schema(_schema())
    with pytest.raises(jsonschema.SchemaError):
        jsonschema.Draft202012Validator.check_schema({**_schema(), "required": "model"})


def test_an_unchanged_engine_is_identical_and_not_timed(stored):
    result, found = report(stored)
    assert result.ret == 0
    result.assert_outcomes(passed=3)
    assert (found["speed_verdict"], found["speeds"]) == ("identical", [])
    assert found["identical"].startswith("same model, settings and libraries as the baseline of ")
    result.stdout.fnmatch_lines(["fp32: identical: *; not timed"])


def test_an_unchanged_engine_of_another_machine_is_identical(stored):
    folder = stored.baseline().parent
    folder.rename(folder.with_name("another-machine"))
    result, found = report(stored)
    assert result.ret == 0
    assert found["identical"].endswith(" of machine another-machine")


def test_an_identical_engine_is_timed_if_that_is_asked_for(stored):
    result, found = report(stored, "--gate-measure-identical")
    assert result.ret == 0
    assert found["identical"] == ""
    assert len(found["speeds"]) == 1
    assert found["context"]["against"].endswith(", from the cache")


@pytest.mark.parametrize(
    "edited",
    [
        lambda variant: variant["deltas"].update(cosine_worst=1.0, max_abs=0.0),
        lambda variant: variant.update(deltas=None),
        lambda variant: variant.update(executed={"f16": 2}),
        lambda variant: variant["context"].update(threads=7),
        lambda variant: variant["provenance"]["recipe"].update(output="another"),
        lambda variant: variant.update(provenance=None),
    ],
    ids=["nearer", "unknown deltas", "other types", "other threads", "other recipe", "an old file"],
)
def test_what_is_not_the_baselines_engine_is_not_called_identical(stored, edited, request):
    if request.node.callspec.id == "nearer":  # the engine's own embeddings move away
        stored.write("conftest.py", MOVED)
    edit(stored, edited)
    _, found = report(stored)
    assert found["identical"] == ""
    assert found["speed_verdict"] != "identical"


MOVED = """
import pytest

@pytest.fixture(scope="session")
def embeddings(embeddings):
    return embeddings * 1.0005
"""


def test_a_changed_model_is_measured_beside_the_engine_in_the_cache(stored, load_tiny):
    change(stored, load_tiny)
    result, found = report(stored)
    assert result.ret == 0
    assert found["context"]["against"].endswith(", from the cache")
    assert found["speeds"][0]["judgement"]["verdict"] == "pass"


def test_without_a_cache_the_engine_is_built_from_its_revision(stored, load_tiny):
    change(stored, load_tiny)
    result, found = report(stored, "--gate-engine-cache=fresh")
    assert result.ret == 0
    assert ", built from " in found["context"]["against"]
    assert found["speeds"][0]["judgement"]["verdict"] == "pass"


def test_on_another_machine_too(stored, load_tiny):
    change(stored, load_tiny)
    folder = stored.baseline().parent
    folder.rename(folder.with_name("another-machine"))
    _, found = report(stored, "--gate-engine-cache=fresh")
    assert found["speed_verdict"] == "pass"


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        ("", "*built from files outside git"),
        ("a" * 40, f"*cannot be built again: --gate-against {'a' * 40}: neither*"),
    ],
)
def test_without_cache_and_revision_stored_ratios_are_left(stored, load_tiny, revision, reason):
    change(stored, load_tiny)
    edit(stored, lambda variant: variant["provenance"].update(revision=revision))
    result, found = report(stored, "--gate-engine-cache=fresh")
    assert found["context"]["against"] == ""
    assert found["speeds"][0]["change"] is not None  # beside the stored ratios
    result.stdout.fnmatch_lines([f"*{reason}"])


def test_a_library_that_changed_is_judged_by_stored_ratios(stored):
    edit(stored, lambda variant: variant["provenance"]["recipe"].update(runtime="onnxruntime 1.0"))
    result, found = report(stored)
    assert found["identical"] == ""
    result.stdout.fnmatch_lines(
        ["*only libraries changed: runtime onnxruntime 1.0 -> onnxruntime *"]
    )


def test_a_backend_of_the_project_is_never_called_identical(project):
    assert project.judge("--gate-refresh-baselines").ret == 0
    _, found = report(project)
    assert (found["identical"], found["speed_verdict"]) == ("", "pass")


def test_more_work_in_the_model_regresses_beside_the_baselines_engine(stored, load_tiny):
    load_tiny.write_tiny_onnx(stored.path / "tiny.onnx", work=256)
    result, found = report(stored)
    assert found["context"]["against"].endswith(", from the cache")
    assert found["speed_verdict"] == "regressed"
    assert result.ret == Exit.REGRESSED
    accept = ("--gate-refresh-baselines", "--gate-accept-regressions")
    result.stdout.fnmatch_lines([f"to accept tiny-onnxruntime-fp32: *{' '.join(accept)}*"])
    assert stored.judge(*accept).ret == 0
    _, found = report(stored)
    assert found["speed_verdict"] == "identical"


def test_a_refresh_keeps_no_session_of_another_engine(stored, load_tiny):
    change(stored, load_tiny)
    assert stored.judge("--gate-refresh-baselines", "--gate-accept-regressions").ret == 0
    variant = json.loads(stored.baseline().read_text())["variants"]["onnxruntime-fp32"]
    assert len(variant["cells"]["1"]) == 1


def test_a_refresh_measures_further_sessions_in_fresh_processes(stored):
    result = stored.judge("--gate-refresh-baselines", "--gate-sessions=3")
    assert result.ret == 0
    variant = json.loads(stored.baseline().read_text())["variants"]["onnxruntime-fp32"]
    sessions = variant["cells"]["1"]
    first, own, *further = [len(session["ratios"]["p50"]) for session in sessions]
    assert (first, further) == (3, [3, 3])
    assert own >= 3  # more where it was followed up beside the first
    assert len({session["p50_s"] for session in sessions}) == 4


def test_a_session_that_fails_leaves_the_ones_before_it(stored, monkeypatch):
    def broken(*_):
        raise EngineError("the session broke")

    monkeypatch.setattr("enginegate.session.finish.measure_again", broken)
    result = stored.judge("--gate-refresh-baselines", "--gate-sessions=3")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*the session broke*"])
    variant = json.loads(stored.baseline().read_text())["variants"]["onnxruntime-fp32"]
    assert len(variant["cells"]["1"]) == 2


def test_a_rig_of_the_projects_own_is_not_replaced_by_another_process(project):
    result = project.judge("--gate-refresh-baselines", "--gate-sessions=3")
    result.stdout.fnmatch_lines(["*one session*rig*"])
    variant = json.loads(project.baseline().read_text())["variants"]["faulty-fp32"]
    assert {len(sessions) for sessions in variant["cells"].values()} == {1}


def test_the_history_has_runs_beside_the_baselines_engine_apart(stored, load_tiny):
    (path,) = stored.path.glob("baselines/history/*/tiny.jsonl")
    assert len(path.read_text().splitlines()) == 1  # of the refresh
    assert stored.judge("--gate-refresh-baselines", "--gate-dry-run").ret == 0
    change(stored, load_tiny)
    assert stored.judge("--gate-history").ret == 0
    series = read_history(stored.path / "baselines", "tiny")
    assert len(path.read_text().splitlines()) == len(series) == 2
    assert " beside the baseline's engine of 20" in series[1].title


@pytest.mark.parametrize(
    ("reference", "beside"),
    [
        ("onnxruntime 1.32.0 fp32", ""),
        ("onnxruntime 1.32.0 fp32 on an fp16 file", ""),
        ("onnxruntime 1.32.0 int8 file, 1 of its 1 multiplications in int8", ""),
        ("main", " beside main"),
    ],
)
def test_every_reference_is_one_series_whatever_its_file_is(reference, beside):
    note = Note("2026-01-01T00:00:00+00:00", "c", "onnxruntime-int8", 8, 0.01, 0.0, reference)
    assert Series("here", (note,)).title == f"here onnxruntime-int8 batch 8{beside}"


def test_the_history_says_what_it_has_no_figure_of(stored):
    (path,) = stored.path.glob("baselines/history/*/*.jsonl")
    before = path.read_text()
    result = stored.judge("--gate-history")
    result.stdout.fnmatch_lines(["history: not noted, *: tiny-onnxruntime-fp32"])
    assert path.read_text() == before
