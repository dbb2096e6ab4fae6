"""What had a baseline and is not judged any more is reported, and fails where one is required.

Each test plants one way to lose a check without anybody noticing. `benchmarks/mutants.py` prints
them as a table.
"""

import json

import pytest

from enginegate.verdicts import Exit


@pytest.fixture
def guarded(project):
    """A project with a baseline."""
    project.store()
    return project


def judged(project, line, *arguments, status=Exit.UNPROVEN):
    """The line is reported without --gate-require-baseline, and fails with it."""
    project.judge(*arguments).stdout.fnmatch_lines([line])
    assert project.judge("--gate-require-baseline", *arguments).ret == status


def test_a_clean_run_is_not_accused(guarded):
    """The control of all tests here: where nothing is planted, nothing is lost."""
    result = guarded.judge("--gate-require-baseline")
    assert result.ret == 0
    assert "not judged" not in result.stdout.str()


def test_a_renamed_model(guarded):
    settings = (guarded.path / "pyproject.toml").read_text()
    guarded.write("pyproject.toml", settings.replace("models.tiny]", "models.small]"))
    judged(guarded, "not judged: tiny-faulty-fp32: it has a baseline, and no result")


def test_a_deleted_test(guarded):
    (guarded.path / "test_throughput.py").unlink()
    judged(guarded, "not judged: tiny-faulty-fp32: batch 1, 4 has a baseline and was not timed")


def test_all_tests_deleted(guarded):
    for name in ("test_accuracy.py", "test_throughput.py"):
        (guarded.path / name).unlink()
    guarded.write("test_other.py", "def test_it(): pass")
    judged(guarded, "not judged: tiny-faulty-fp32: it has a baseline, and no result")


def test_a_deleted_batch_size(guarded):
    settings = (guarded.path / "pyproject.toml").read_text()
    guarded.write("pyproject.toml", settings.replace("batches = [1, 4]", "batches = [1]"))
    judged(guarded, "not judged: tiny-faulty-fp32: batch 4 has a baseline and was not timed")


def test_a_skipped_test(guarded):
    test = (guarded.path / "test_throughput.py").read_text()
    skipped = f'import pytest\npytestmark = pytest.mark.skip(reason="later")\n{test}'
    guarded.write("test_throughput.py", skipped)
    judged(guarded, "not judged: tiny-faulty-fp32: batch 1, 4 has a baseline and was not timed")


def test_a_disabled_benchmark(guarded):
    line = "not judged: tiny-faulty-fp32: batch 1, 4 has a baseline and was not timed"
    judged(guarded, line, "--benchmark-disable")


def test_a_crash(guarded):
    conftest = (guarded.path / "conftest.py").read_text()
    crash = "\n@pytest.fixture(scope='session')\ndef engine(): raise RuntimeError('crashed')\n"
    guarded.write("conftest.py", conftest + crash)
    line = "not judged: tiny-faulty-fp32: it has a baseline, and no result"
    judged(guarded, line, status=1)


def test_nan_embeddings(guarded):
    guarded.plant("nan")
    line = "not judged: tiny-faulty-fp32: batch 1, 4 has a baseline and was not timed"
    judged(guarded, line, status=Exit.EMBEDDINGS)


def test_another_device(guarded):
    real = ("--gate-backend=onnxruntime", "--gate-measure-s=0.04", "--gate-max-time-per-variant=6")
    result = guarded.judge(*real, "--gate-require-baseline")
    assert result.ret == Exit.UNPROVEN
    result.stdout.fnmatch_lines(
        ["not judged: tiny-faulty-fp32: *no result; onnxruntime-fp32 was judged instead"]
    )


def test_another_precision(guarded):
    baseline = json.loads(guarded.baseline().read_text())
    baseline["variants"]["faulty-fp32"]["executed"] = {"bf16": 1}
    guarded.baseline().write_text(json.dumps(baseline))
    judged(guarded, "not judged: tiny-faulty-fp32: it ran as 1 f32, its baseline as 1 bf16")


def test_a_lost_truth(guarded):
    """As after `truth` of an .onnx model was deleted: nothing may ship that was judged before."""
    baseline = json.loads(guarded.baseline().read_text())
    assert baseline["variants"]["faulty-fp32"]["truth"] == ""
    baseline["variants"]["faulty-fp32"]["truth"] = "encode()"
    guarded.baseline().write_text(json.dumps(baseline))
    said = "encode() judged the reference of its baseline, and no truth judged it now"
    result = guarded.judge()
    result.stdout.fnmatch_lines(["hold *", f"fp32: the reference is in doubt: {said}"])
    judged(guarded, f"not judged: tiny-faulty-fp32: {said}")
    assert guarded.judge("--strict").ret == Exit.EMBEDDINGS


def test_a_truth_that_another_variant_of_the_model_lost(guarded):
    baseline = json.loads(guarded.baseline().read_text())
    stored = baseline["variants"].pop("faulty-fp32")
    baseline["variants"]["faulty-fp16"] = {**stored, "truth": "encode()"}
    guarded.baseline().write_text(json.dumps(baseline))
    said = "encode() judged the reference of tiny-faulty-fp16's baseline, and no truth judged it"
    guarded.judge().stdout.fnmatch_lines(["hold *", f"*the reference is in doubt: {said} now"])
    baseline["variants"]["faulty-fp16"]["truth"] = ""
    guarded.baseline().write_text(json.dumps(baseline))
    assert "in doubt" not in guarded.judge().stdout.str()


def test_a_baseline_without_a_word_of_truth_is_read(guarded):
    baseline = json.loads(guarded.baseline().read_text())
    del baseline["variants"]["faulty-fp32"]["truth"]
    guarded.baseline().write_text(json.dumps(baseline))
    result = guarded.judge("--gate-require-baseline")
    assert result.ret == 0
    assert "in doubt" not in result.stdout.str()


def test_a_throttled_container(guarded, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr("enginegate.machine.condition.throttled_s", lambda: float(next(ticks)))
    line = "not judged: tiny-faulty-fp32: the container's CPU quota stopped it in * blocks"
    judged(guarded, line)


def test_a_lost_reference(guarded):
    baseline = json.loads(guarded.baseline().read_text())
    baseline["variants"]["faulty-fp32"]["context"]["reference"] = "onnxruntime 1.0.0 fp32"
    guarded.baseline().write_text(json.dumps(baseline))
    judged(guarded, "*incomparable: reference was onnxruntime 1.0.0 fp32, is *")


def test_a_slower_engine_under_another_name(guarded):
    """Three times slower and renamed: what pytest-benchmark lets pass."""
    settings = (guarded.path / "pyproject.toml").read_text()
    guarded.write("pyproject.toml", settings.replace("models.tiny]", "models.small]"))
    guarded.plant("slow")
    judged(guarded, "not judged: tiny-faulty-fp32: it has a baseline, and no result")


def test_a_run_narrowed_on_purpose_is_not_accused(guarded):
    result = guarded.judge("--gate-require-baseline", "-k", "embeddings")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["not looked for lost checks: the run was narrowed by -k"])


def test_gate_off_says_that_nothing_is_compared(guarded):
    guarded.plant("slow")
    result = guarded.judge("--gate-level=off")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*incomparable: not compared: --gate-level off"])
