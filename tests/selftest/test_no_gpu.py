"""A machine without a driver, without a GPU, or with a driver that cannot: one clear error."""

import os

import pytest

from enginegate.engines.registry import check_installed, resolve
from enginegate.errors import EngineError, OptionError
from enginegate.machine.gpus import first_gpu


def test_without_a_driver_tensorrt_is_one_clear_error(project, no_driver):
    result = project.judge("--gate-backend=tensorrt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = result.stderr.lines[:1]
    assert line.startswith("ERROR: backend tensorrt cannot run here: no CUDA driver is installed")
    assert "pip install 'pytest-enginegate[gpu-cu13]'" in line
    assert "enginegate doctor" in line


def test_without_a_driver_auto_is_the_cpu_and_says_so(project, no_driver):
    result = project.judge("--gate-backend=auto", "-k", "embeddings")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["backend auto: openvino, on the CPU; no tensorrt: no CUDA driver is installed: *"]
    )


def test_in_a_forked_process_a_gpu_is_one_clear_error(fake_gpu, monkeypatch):
    assert first_gpu().name == fake_gpu.gpu
    child = os.getpid() + 1
    monkeypatch.setattr("enginegate.machine.gpus.os.getpid", lambda: child)
    with pytest.raises(EngineError, match=r"was forked from one that uses it: .*start processes"):
        first_gpu()


def test_with_a_gpu_auto_is_tensorrt(fake_gpu):
    assert resolve("auto") == ("tensorrt", "backend auto: tensorrt, on the GPU")
    check_installed("tensorrt")


@pytest.mark.parametrize(
    ("code", "gpus", "said"),
    [
        (100, 0, "no GPU is visible"),
        (0, 0, "no GPU is visible"),
        (804, 1, "update the driver"),
        (35, 1, "the driver is too old for the CUDA that was installed"),
        (719, 1, "the CUDA driver answers error 719"),
    ],
)
def test_a_driver_that_cannot_says_why(fake_gpu, code, gpus, said):
    fake_gpu.cuda_init, fake_gpu.gpus = code, gpus
    with pytest.raises(EngineError, match=f"no GPU can be used: .*{said}"):
        first_gpu()
    with pytest.raises(OptionError, match=said):
        check_installed("tensorrt")
