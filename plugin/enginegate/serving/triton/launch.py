"""How `tritonserver` is called: its command line and its environment variables."""

import os
from collections.abc import Sequence
from pathlib import Path

import enginegate
from enginegate.serving.triton.access import Access, allowed
from enginegate.serving.triton.environment import ServerEnvironment
from enginegate.speed import own_paths

HOST = "127.0.0.1"
_EXIT_S = 5


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
