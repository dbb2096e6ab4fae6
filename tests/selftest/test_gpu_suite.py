"""The suite for owners of a GPU, on the fake one and without any; the doctor."""

import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from enginegate.cli import main
from enginegate.engines import doctor, registry
from enginegate.engines import wheels as wheels_module
from enginegate.engines.registry import what_lacks
from enginegate.engines.wheels import FITTING
from enginegate.machine.gpus import find_gpus

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
    fast = "not cuda and not faster and not onnxruntime-tensorrt and not (layer and not fp16)"
    options = ("--require-gpu", "--gpu-artefacts=kept", "-k", fast)
    result = checkout.runpytest_inprocess("-m", "gpu", *options)
    result.assert_outcomes(passed=14, deselected=8)
    kept = {path.name for path in (checkout.path / "kept").iterdir()}
    assert kept == {
        "fp16.layers.json",
        "fp16.txt",
        "tf32.layers.json",
        "tf32.txt",
        "nvidia-smi.txt",
    }


def test_without_a_gpu_the_suite_is_skipped_with_the_reason_or_fails(checkout, no_driver):
    skipped = checkout.runpytest_inprocess("-m", "gpu", "-rs")
    skipped.assert_outcomes(skipped=22)
    skipped.stdout.fnmatch_lines(["*tensorrt cannot run here: no CUDA driver is installed*"])
    failed = checkout.runpytest_inprocess("-m", "gpu", "--require-gpu")
    failed.assert_outcomes(errors=22)


def test_the_suite_is_left_out_unless_it_is_asked_for(checkout, no_driver):
    assert checkout.runpytest_inprocess().ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_the_doctor_says_what_to_install(no_driver, capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (tensorrt,) = [line for line in lines if line.startswith("backend tensorrt ")]
    assert "missing" in tensorrt
    assert (
        "pip install 'pytest-enginegate[gpu-cu13]', or gpu-cu12 for a driver older than 580,"
        in tensorrt
    )
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


@pytest.fixture
def wheels(fake_gpu, monkeypatch):
    """Wheels by name and version, and the CUDA that onnxruntime-gpu was built for."""

    def install(cuda=13, **versions):
        for module in (doctor, registry, wheels_module):
            monkeypatch.setattr(module, "installed_version", versions.get)
        monkeypatch.setattr(wheels_module, "_of_onnxruntime", lambda: cuda)

    return install


def test_a_driver_older_than_a_wheel_is_said_before_anything_fails(wheels, fake_gpu, capsys):
    wheels(**{"tensorrt_cu13_bindings": "10.16.1.11", "cuda-bindings": "13.5.0"})
    fake_gpu.driver = 12040
    assert what_lacks("tensorrt") == (
        "the driver has CUDA 12.4, tensorrt_cu13_bindings needs CUDA 13, cuda-bindings needs "
        "CUDA 13, onnxruntime-gpu needs CUDA 13: update the driver, or pip install "
        "'pytest-enginegate[gpu-cu12]' in a new environment"
    )
    main(["doctor"])
    said = capsys.readouterr().out
    assert "the driver has CUDA 12.4: the extra gpu-cu12 fits it" in said
    assert "backend auto: openvino, on the CPU; no tensorrt: the driver has CUDA 12.4" in said


@pytest.mark.parametrize("driver", [12020, 13000, 14010])
def test_a_driver_runs_wheels_of_its_cuda_and_of_older_ones(wheels, fake_gpu, driver):
    wheels(cuda=12, tensorrt_cu12_bindings="10.16.1.11")
    fake_gpu.driver = driver
    assert what_lacks("tensorrt") == ""


def test_a_driver_that_no_extra_fits_is_said(wheels, fake_gpu):
    wheels(cuda=12)
    fake_gpu.driver = 11080
    assert what_lacks("tensorrt").endswith("no version of this package works with that driver")


@pytest.mark.parametrize("code", [34, 35, 36, 46])
def test_faults_of_the_driver_have_a_way_out(fake_gpu, code):
    fake_gpu.cuda_init = code
    assert ": " in find_gpus().reason
    assert "answers error" not in find_gpus().reason


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("cuda", FITTING)
def test_an_extra_has_wheels_of_one_cuda_and_one_tensorrt(cuda):
    """As their own metadata say: onnxruntime-gpu 1.26.0 needs CUDA 12, 1.28.0 needs CUDA 13."""
    wanted = {r.name: r for r in map(Requirement, EXTRAS[FITTING[cuda]])}
    runtime, plans = wanted["onnxruntime-gpu"], wanted[f"tensorrt-cu{cuda}"]
    assert {v: v in runtime.specifier for v in ("1.20.2", "1.26.0", "1.28.0")} == {
        "1.20.2": False,  # lacks preload_dlls
        "1.26.0": cuda == 12,
        "1.28.0": cuda == 13,
    }
    assert [v in wanted["cuda-bindings"].specifier for v in ("12.9.4", "13.5.0")] == [
        cuda == 12,
        cuda == 13,
    ]
    assert "10.16.1.11" in plans.specifier
    assert "11.0.0.114" not in plans.specifier  # onnxruntime-gpu is linked to libnvinfer.so.10


def test_the_doctor_finds_packages_that_exclude_each_other(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.32.0")
    assert any("pip uninstall -y onnxruntime" in line for line in doctor.advice())
