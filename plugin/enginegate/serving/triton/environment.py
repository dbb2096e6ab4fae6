"""The server's own environment: Triton and the engines' runtimes, with a numpy that Triton takes.

Triton's Python backend needs numpy 1: with numpy 2 it answers wrong values and reports no error.
So the server gets a folder of packages of its own, beside the engines in the cache.
"""

import compileall
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from shutil import copy
from typing import Any

import enginegate
from enginegate.cache import Store
from enginegate.engines import runtime_packages
from enginegate.errors import ServingError
from enginegate.files import ending_with_parent
from enginegate.machine import installed_version
from enginegate.serving.triton.access import Access, allowed
from enginegate.speed import own_paths

Progress = Callable[[str], AbstractContextManager[object]]

_RECIPE = 1  # raise when the same key would give another environment
_TRITON = "nvidia-pytriton==0.7.0"
_NUMPY = "numpy<2"
_LAST_OF_NUMPY_1 = (3, 12)  # the latest Python that has it
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_PACKAGES = Path("lib", f"python{_PYTHON}", "site-packages")
_BINARY = Path("pytriton", "tritonserver", "bin", "tritonserver")
_BACKEND = Path("pytriton", "tritonserver", "backends", "python")
_STUB = "triton_python_backend_stub"
_STUBS = Path("pytriton", "tritonserver", "python_backend_stubs")
_LIBRARIES = "nvidia_pytriton.libs"
_TAIL_LINES = 15
HOST = "127.0.0.1"
_EXIT_S = 5


@dataclass(frozen=True)
class ServerEnvironment:
    """A folder of packages that the server and its models run with.

    Attributes:
        folder: laid out as a virtual environment, with `backends/python` beside.
        note: what the store had to say; empty for nothing.
    """

    folder: Path
    note: str = ""

    @property
    def binary(self) -> Path:
        """The server's program."""
        return self.packages / _BINARY

    @property
    def packages(self) -> Path:
        """Where its packages are installed."""
        return self.folder / _PACKAGES

    @property
    def programs(self) -> Path:
        """What comes first in `PATH`, where Triton's Python backend looks for its Python."""
        return self.folder / "bin"

    @property
    def backends(self) -> Path:
        """What `--backend-directory` names."""
        return self.folder / "backends"

    @property
    def library_path(self) -> str:
        """`LD_LIBRARY_PATH`: this Python's own library first, then the server's."""
        return f"{sysconfig.get_config_var('LIBDIR')}:{self.packages / _LIBRARIES}"


def server_environment(store: Store, progress: Progress) -> ServerEnvironment:
    """The environment for this Python and these versions of the runtimes, from the store or made.

    Raises ServingError if pip cannot make it, or if it is not fit for serving.
    """
    check_python(sys.version_info[:2])
    requirements = [_NUMPY, *_same_runtimes()]

    def build(folder: Path) -> Mapping[str, Any]:
        with progress("packages of the server"):
            _install(folder, requirements)
        return {}

    entry = store.get_or_build("server", _key(requirements), build)
    environment = ServerEnvironment(entry.folder, entry.note)
    check_environment(environment)
    return environment


def check_python(version: tuple[int, ...]) -> None:
    """Raise ServingError for a Python, `(3, 13)`, that Triton's Python backend cannot run in."""
    if version > _LAST_OF_NUMPY_1:
        asked, last = (".".join(map(str, one)) for one in (version, _LAST_OF_NUMPY_1))
        raise ServingError(
            f"Triton's Python backend needs numpy 1, which Python {asked} does not have: run "
            f"pytest in Python {last} or earlier, or serve with --gate-serve URL from a server "
            "that runs already"
        )


def _same_runtimes() -> list[str]:
    """The runtimes as they are installed here: an engine's blob is only read by its own version."""
    found = {name: installed_version(name) for name in runtime_packages()}
    return [f"{name}=={version}" for name, version in found.items() if version]


def _key(requirements: Sequence[str]) -> dict[str, Any]:
    return {
        "recipe": _RECIPE,
        "packages": [_TRITON, *requirements],
        "python": [_PYTHON, str(_base_python())],
        "platform": sysconfig.get_platform(),
    }


def _install(folder: Path, requirements: Sequence[str]) -> None:
    _pip(folder, requirements)
    _pip(folder, ["--no-deps", _TRITON])  # its own Python interface stays unused
    _name_python(folder)
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in _backend_files(folder / _PACKAGES):
        copy(file, backend)
    compileall.compile_dir(backend, quiet=2)  # else the server would, and change the entry


def _name_python(folder: Path) -> None:
    """Lay out a virtual environment: it keeps this Python's own packages out of the server."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(_base_python())
    home = f"home = {_base_python().parent}\ninclude-system-site-packages = false\n"
    (folder / "pyvenv.cfg").write_text(home, encoding="utf-8")


def _base_python() -> Path:
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _backend_files(packages: Path) -> list[Path]:
    """The files of Triton's Python backend; ServingError if there are none for this Python."""
    stub = packages / _STUBS / _PYTHON / _STUB
    if not stub.is_file():
        offered = ", ".join(sorted(p.name for p in (packages / _STUBS).glob("*"))) or "none"
        raise ServingError(
            f"{_TRITON} cannot run models in Python {_PYTHON}: it has stubs for {offered}; "
            "run pytest in one of these, or serve with --gate-serve URL"
        )
    return [*(p for p in (packages / _BACKEND).iterdir() if p.is_file()), stub]


def _pip(folder: Path, arguments: Sequence[str]) -> None:
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    target = ["--target", str(folder / _PACKAGES)]
    command = [sys.executable, "-m", "pip", "install", *quiet, *target, *arguments]
    found = subprocess.run(  # noqa: S603
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=ending_with_parent(),
    )
    if found.returncode != 0:
        raise _not_installed(arguments, found.stderr)


def _not_installed(arguments: Sequence[str], said: str) -> ServingError:
    tail = "\n".join(said.strip().splitlines()[-_TAIL_LINES:])
    return ServingError(
        f"cannot make the server's environment: pip install {' '.join(arguments)} failed. "
        f"Give pip access to these packages, or serve with --gate-serve URL from a server that "
        f"runs already. pip said:\n{tail}"
    )


def check_environment(environment: ServerEnvironment) -> None:
    """Raise ServingError unless the server's program, its stub and numpy 1 are there."""
    needed = (environment.binary, environment.backends / "python" / _STUB)
    missing = [path for path in needed if not path.is_file()]
    if missing:
        raise _broken(environment, f"{missing[0].relative_to(environment.folder)} is missing")
    numpys = environment.packages.glob("numpy-*.dist-info")
    found = sorted(path.stem.removeprefix("numpy-") for path in numpys)
    if [version.partition(".")[0] for version in found] != ["1"]:
        installed = f"numpy {', '.join(found) or 'is missing'}"
        raise _broken(environment, f"{installed}, where Triton's Python backend needs numpy 1")


def _broken(environment: ServerEnvironment, fault: str) -> ServingError:
    return ServingError(
        f"the server's environment {environment.folder} is broken ({fault}); "
        "delete that folder, and the next run makes it again"
    )


def server_command(
    environment: ServerEnvironment, folder: Path, names: Sequence[str], access: Access
) -> list[str]:
    """The command line of a server that loads the models named, and answers whom it should."""
    options = {
        "id": folder.name,
        "model-repository": folder / "models",
        "backend-directory": environment.backends,
        "backend-config": f"python,shm-region-prefix-name={folder.name}",
        "model-control-mode": "explicit",
        "http-address": HOST,
        "http-port": access.port,
        "allow-metrics": "false",
        "exit-timeout-secs": _EXIT_S,
    }
    named = [f"--{name}={value}" for name, value in options.items()] + access.options()
    return [str(environment.binary), *named, *(f"--load-model={name}" for name in names)]


def server_variables(environment: ServerEnvironment, folder: Path) -> dict[str, str]:
    """The environment variables of the server and, through it, of its models."""
    source = _own_source(folder)
    paths = [source, *(Path(path).resolve() for path in own_paths())]
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        **allowed(os.environ),
        "LD_LIBRARY_PATH": environment.library_path,
        "PATH": f"{environment.programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "ENGINEGATE_PATHS": os.pathsep.join(map(str, paths)),
        "TMPDIR": str(temporary),
    }


def _own_source(folder: Path) -> Path:
    """A folder with this package alone: what it may be installed beside is not the server's."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    link = source / "enginegate"
    if not link.is_symlink():
        link.symlink_to(Path(enginegate.__file__).parent)
    return source
