"""The suite for owners of a GPU, on the fake one and without any; the doctor."""

import shutil
from pathlib import Path

import pytest

from enginegate.cli import main
from enginegate.engines import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(pytester):
    """The suite as a checkout has it."""
    (pytester.path / "tests" / "selftest").mkdir(parents=True)
    for name in ("conftest.py", "tests/test_gpu.py", "tests/selftest/tiny.py"):
        shutil.copy(ROOT / name, pytester.path / name)
    (pytester.path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\ntestpaths = ["tests/test_gpu.py"]\n'
        'markers = ["gpu: needs a GPU"]\naddopts = "--import-mode=importlib"\n'
    )
    return pytester


def test_the_suite_passes_on_the_fake_gpu(checkout, fake_gpu):
    result = checkout.runpytest_inprocess("-m", "gpu", "--require-gpu", "-k", "not cuda")
    result.assert_outcomes(passed=11, deselected=3)


def test_without_a_gpu_the_suite_is_skipped_with_the_reason_or_fails(checkout, no_driver):
    skipped = checkout.runpytest_inprocess("-m", "gpu", "-rs")
    skipped.assert_outcomes(skipped=14)
    skipped.stdout.fnmatch_lines(["*tensorrt cannot run here: no CUDA driver is installed*"])
    failed = checkout.runpytest_inprocess("-m", "gpu", "--require-gpu")
    failed.assert_outcomes(errors=14)


def test_the_suite_is_left_out_unless_it_is_asked_for(checkout, no_driver):
    assert checkout.runpytest_inprocess().ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_the_doctor_says_what_to_install(no_driver, capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (tensorrt,) = [line for line in lines if line.startswith("backend tensorrt ")]
    assert "missing" in tensorrt
    assert "pip install 'pytest-enginegate[gpu]'" in tensorrt
    (cuda,) = [line for line in lines if line.startswith("backend onnxruntime-cuda ")]
    assert "onnxruntime-gpu not installed" in cuda
    (openvino,) = [line for line in lines if line.startswith("backend openvino ")]
    assert "usable" in openvino
    assert lines[-1].startswith("backend auto: openvino, on the CPU")


def test_the_doctor_sees_the_gpu_and_how_to_confirm_it(fake_gpu, capsys):
    fake_gpu.throttling = 0x04
    main(["doctor"])
    said = capsys.readouterr().out
    assert "NVIDIA Fake 9000 (compute capability 9.0), driver CUDA 13.0; throttled now" in said
    assert "backend tensorrt              usable   tensorrt 11.4.0.106 on NVIDIA Fake 9000" in said
    assert "--require-gpu, in a checkout" in said


def test_the_doctor_finds_packages_that_exclude_each_other(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.32.0")
    assert any("pip uninstall -y onnxruntime" in line for line in doctor.advice())
