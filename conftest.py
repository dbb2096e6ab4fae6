"""This project's own choices beyond pyproject.toml's `[tool.enginegate]`: tests of a GPU."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/test_gpu.py."""
    said = "with -m gpu: fail, not skip, without a usable GPU"
    parser.addoption("--require-gpu", action="store_true", help=said)
    kept = "with -m gpu: write layers, types and nvidia-smi there, to attach to a report"
    parser.addoption("--gpu-artefacts", metavar="DIR", help=kept)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of a GPU out unless they are asked for, with -m gpu or by their path."""
    named = any("test_gpu" in argument for argument in config.invocation_params.args)
    if not named and "gpu" not in config.option.markexpr:
        items[:] = [item for item in items if item.get_closest_marker("gpu") is None]
