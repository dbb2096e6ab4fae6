"""Who may ask the server that is started: this user alone.

Triton takes a password on its command line only, which every user of the machine can read. So
models are loaded over gRPC, on a socket in a folder that no other user can enter, and HTTP refuses
that to everybody: it asks for a header whose name no request can hold. What is left of HTTP needs a
header with a random value. A web page cannot send one to a foreign server, and does not know it.
"""

import contextlib
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enginegate.errors import ServingError
from enginegate.serving.triton.supervisor import SEGMENTS

_NOBODYS = "model-repository,shared-memory,trace,logging"
_OURS = "inference,metadata,model-config,statistics,health"
_UNSENDABLE = "no\none"  # a line break ends a header
_KEY = "enginegate-key"
_PORT = 1  # part of the socket's name, as Triton puts it together
_NAMES = frozenset({
    "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TZ", "USER",
    "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES",
    "LD_PRELOAD",
})  # fmt: skip
_PREFIXES = (
    "BLIS_", "DNNL_", "ENGINEGATE_", "GOMP_", "KMP_", "LC_", "MALLOC_", "MKL_", "NVIDIA_", "OMP_",
    "ONEDNN_", "OPENBLAS_", "OPENVINO_", "ORT_", "OV_", "TBB_",
)  # fmt: skip


@dataclass(frozen=True)
class Access:
    """Where a server listens, and what it asks for.

    Attributes:
        port: of HTTP, on the loopback address.
        name: of the folder of its socket, which `supervisor.py` makes.
        key: the random value.
    """

    port: int
    name: str
    key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def header(self) -> str:
        """What every HTTP request has to carry."""
        return f"{_KEY}: {self.key}"

    @property
    def grpc(self) -> str:
        """The address of the socket."""
        return f"{self._address}:{_PORT}"

    @property
    def _address(self) -> str:
        return f"unix:{SEGMENTS / self.name / 'grpc'}"

    def options(self) -> list[str]:
        """The part of the server's command line that says so."""
        return [
            f"--grpc-address={self._address}",
            f"--grpc-port={_PORT}",
            f"--http-restricted-api={_NOBODYS}:{_UNSENDABLE}={_UNSENDABLE}",
            f"--http-restricted-api={_OURS}:{_KEY}={self.key}",
        ]


def allowed(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that a server and its engines need; secrets of a job are none."""
    named = {name for name in variables if name in _NAMES or name.startswith(_PREFIXES)}
    return {name: variables[name] for name in sorted(named)}


def hide_segments(name: str) -> None:
    """Keep the shared memory of a server's models to this user: Triton lets all users read it."""
    for segment in SEGMENTS.glob(f"*{name}*"):
        with contextlib.suppress(FileNotFoundError):
            segment.chmod(0o700 if segment.is_dir() else 0o600)


def check_out_of_reach(folder: Path) -> None:
    """Raise ServingError if another user could put a folder of his own in the place of this one."""
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ServingError(
                f"every user of this machine can replace what lies in {parent}, where the server's "
                "models would be; set TMPDIR to a folder of your own"
            )
