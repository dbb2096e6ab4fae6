"""The server's environment: what is missing or wrong in it is said before a server starts."""

import pytest
from tests.selftest.fake_server import no_models, quiet, stand_in

from enginegate.cache import Store
from enginegate.engines import check_installed, register, registry, runtime_packages
from enginegate.errors import OptionError, ServingError
from enginegate.serving.triton import environment as environments
from enginegate.serving.triton.environment import (
    check_environment,
    check_python,
    server_environment,
)
from enginegate.serving.triton.server import serve


@pytest.fixture
def fake(tmp_path):
    return stand_in(tmp_path)


@pytest.fixture
def registered(monkeypatch):
    """The backends of this package, and what a test adds."""
    monkeypatch.setattr("enginegate.engines.registry.REGISTERED", dict(registry._OWN))


class TestEnvironment:
    def test_missing_program(self, fake):
        fake().binary.unlink()
        with pytest.raises(ServingError, match=r"broken \(.*bin/tritonserver is missing\); delete"):
            check_environment(fake())

    def test_numpy_2(self, fake):
        (fake().packages / "numpy-1.26.4.dist-info").rename(
            fake().packages / "numpy-2.1.0.dist-info"
        )
        with pytest.raises(ServingError, match=r"broken \(numpy 2.1.0, where .* needs numpy 1\)"):
            check_environment(fake())

    def test_two_numpys(self, fake):
        (fake().packages / "numpy-2.1.0.dist-info").mkdir()
        with pytest.raises(ServingError, match=r"numpy 1.26.4, 2.1.0, where"):
            check_environment(fake())

    def test_no_server_is_started_from_a_broken_one(self, fake):
        fake().binary.unlink()
        with pytest.raises(ServingError, match="is broken"), serve(fake(), no_models, quiet):
            pass

    def test_what_pip_said(self, tmp_path, monkeypatch):
        monkeypatch.setattr(environments, "check_python", lambda _version: None)
        monkeypatch.setattr(environments, "_NUMPY", "no such requirement <")
        with pytest.raises(ServingError, match=r"failed\. Give pip access(.|\n)*requirement"):
            server_environment(Store(tmp_path), quiet)
        assert not list(tmp_path.glob("server/*/*"))

    def test_same_versions_as_here(self):
        import onnxruntime

        assert f"onnxruntime=={onnxruntime.__version__}" in environments._same_runtimes()

    def test_packages_of_the_backends_that_there_are(self, registered):
        """They are part of the cache's key: another order would make every server anew."""
        assert runtime_packages() == ["onnx", "onnxruntime", "openvino"]

    def test_packages_of_a_registered_backend(self, registered):
        register("own", "own:Own", runtime=["pytest", "onnx"])
        names = [found.partition("==")[0] for found in environments._same_runtimes()]
        assert names == ["onnx", "onnxruntime", "openvino", "pytest"]

    def test_a_package_that_is_not_here_is_said(self, registered):
        register("own", "own:Own", runtime=["no-such"])
        with pytest.raises(OptionError, match="no-such not installed: pip install no-such"):
            check_installed("own")

    def test_a_backend_registered_anew_keeps_its_packages(self, registered):
        register("openvino", "own:Own")
        assert runtime_packages() == ["onnx", "onnxruntime", "openvino"]

    def test_python_without_a_stub(self, tmp_path):
        stub = tmp_path / environments._STUBS / "3.8" / "triton_python_backend_stub"
        stub.parent.mkdir(parents=True)
        stub.touch()
        with pytest.raises(ServingError, match=r"it has stubs for 3\.8; run pytest in one"):
            environments._backend_files(tmp_path)


def test_a_python_without_numpy_1_is_refused_before_anything_is_installed(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(environments, "_pip", lambda *words: asked.append(words))
    monkeypatch.setattr(environments, "_LAST_OF_NUMPY_1", (3, 0))
    with pytest.raises(ServingError, match=r"does not have: run pytest in Python 3\.0 or earlier"):
        server_environment(Store(tmp_path), quiet)
    assert asked == []


def test_the_python_that_lacks_numpy_1_is_told_and_one_that_has_it_is_taken():
    check_python((3, 12))
    with pytest.raises(ServingError, match=r"Python 3\.13 does not have: .* Python 3\.12 or"):
        check_python((3, 13))
