"""`tritonserver` as a context manager: started on free ports, stopped on every way out."""

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginegate.config import Endpoint, Protocol
from enginegate.errors import ServingError
from enginegate.machine import Child
from enginegate.serving.triton import supervisor
from enginegate.serving.triton.access import Access, check_out_of_reach, hide_segments
from enginegate.serving.triton.client import load_model, server_name, unload_model
from enginegate.serving.triton.environment import (
    HOST,
    Progress,
    ServerEnvironment,
    check_environment,
    server_command,
    server_variables,
)

START_S = 60.0
_ATTEMPTS = 4
_POLL_S = 0.1
_STOP_WAIT_S = 10.0
_TOLD_S = 3.0  # longest that the supervisor takes to tell of a server that has just ended
_TAIL_LINES = 30
_HARMLESS = "CudaDriverHelper"  # logged by every server without a GPU
_ERROR = re.compile(r"E\d{4} ")
_PORT_TAKEN = re.compile(
    r"E\d{4} .* main\.cc:\d+\] \"failed to start (HTTP|GRPC) service: .* already in use"
)

WriteModels = Callable[[Path], Sequence[str]]


class _Supervisor:
    """The process that owns the server and its folder."""

    def __init__(self, process: Child) -> None:
        self._process = process
        self.folder = Path(self._answer()["folder"])
        self._status: int | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start a server; its process id. Raises ServingError if it cannot be run."""
        self._process.order(command=list(command), environment=dict(environment))
        self._status = None
        answer = self._answer()
        if "cannot" in answer:
            raise ServingError(
                f"the server's program cannot be run: {answer['cannot']}; see that it is made for "
                "this machine, or delete the server's environment, and the next run makes it again"
            )
        return int(answer["started"])

    def ended(self, wait_s: float = 0.0) -> int | None:
        """Status of a server that ended by itself, or None if that is not told in `wait_s`."""
        if self._status is None and self._process.has_answer(wait_s):
            self._status = int(self._answer()["ended"])
        return self._status

    def _answer(self) -> Any:
        try:
            return self._process.answer()
        except EOFError as error:
            raise ServingError(
                f"the server's supervisor {error}; see what it printed above, free memory and "
                "space for temporary files, and run again"
            ) from error


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        repository: its model repository; models may be added while it runs.
        http: its address, `host:port`.
        grpc: the address of its socket.
        pid: its process.
        header: what every HTTP request has to carry.
    """

    repository: Path
    http: str
    grpc: str
    pid: int
    header: str = field(repr=False)
    _supervisor: _Supervisor

    def endpoint(self, model: str, protocol: Protocol = Protocol.GRPC) -> Endpoint:
        """The endpoint of a model."""
        http = protocol is Protocol.HTTP
        return Endpoint(protocol, self.http if http else self.grpc, model, self.header)

    def load(self, model: str, timeout_s: float = START_S) -> None:
        """Load a model of the repository, unless it is loaded; ServingError with the reason."""
        seen = len(self.log())
        try:
            load_model(self.endpoint(model), timeout_s)
        except ServingError as error:
            self.check_alive()
            if not _logged_errors(self.log()[seen:]):
                raise
            reason = _reason_of(self.log()[seen:])
            raise ServingError(f"the server cannot load {model}. {reason}") from error
        hide_segments(self.repository.parent.name)

    def unload(self, model: str, timeout_s: float = START_S) -> None:
        """Unload a model and wait until it is gone. Raises ServingError."""
        unload_model(self.endpoint(model), timeout_s)

    def check_alive(self, *, failed: bool = False) -> None:
        """Raise ServingError, with the end of its log, if the server has ended.

        Where it `failed` to answer it may have ended a moment ago: that is waited for.
        """
        status = self._supervisor.ended(_TOLD_S if failed else 0.0)
        if status is not None:
            raise ServingError(f"the server ended with status {status}. {self.reason()}")

    def reason(self) -> str:
        """The fault that the log states; else its end."""
        return _reason_of(self.log())

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        return _tail_of(self.log())

    def log(self) -> str:
        """The server's log; empty once it was stopped."""
        return _read(self.repository.parent / supervisor.LOG)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def serve(
    environment: ServerEnvironment,
    write_models: WriteModels,
    progress: Progress,
    timeout_s: float = START_S,
) -> Iterator[Server]:
    """A server with the models that `write_models(repository)` writes and names, ready.

    Raises ServingError if it does not get ready in `timeout_s`, ends, or cannot load a model.
    """
    check_environment(environment)
    with _supervised() as owner:
        check_out_of_reach(owner.folder)
        repository = owner.folder / "models"
        repository.mkdir()
        names = write_models(repository)
        with progress("server"):
            server = _started(environment, owner, names, timeout_s)
        yield server


@contextlib.contextmanager
def _supervised() -> Iterator[_Supervisor]:
    command = [sys.executable, "-I", "-S", supervisor.__file__, str(_STOP_WAIT_S)]
    process = Child(command, start_new_session=True)
    owner: _Supervisor | None = None
    try:
        owner = _Supervisor(process)
        yield owner
    finally:
        process.close(2 * _STOP_WAIT_S)
        if owner is not None:
            supervisor.clean(owner.folder)  # in case it was killed itself


def _started(
    environment: ServerEnvironment, owner: _Supervisor, names: Sequence[str], timeout_s: float
) -> Server:
    end = time.monotonic() + timeout_s
    for _ in range(_ATTEMPTS):
        access = Access(free_port(), owner.folder.name)
        command = server_command(environment, owner.folder, names, access)
        pid = owner.start(command, server_variables(environment, owner.folder))
        models, http = owner.folder / "models", f"{HOST}:{access.port}"
        server = Server(models, http, access.grpc, pid, access.header, owner)
        if _is_ready(server, owner, timeout_s, end):
            hide_segments(owner.folder.name)
            return server
    raise ServingError(
        f"other programs took the server's port {_ATTEMPTS} times; run again when the machine "
        f"is quieter. Its log ends:\n{server.log_tail()}"
    )


def free_port() -> int:
    """A port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_ready(server: Server, owner: _Supervisor, timeout_s: float, end: float) -> bool:
    """Wait for the server. False if its port was taken; ServingError for any other end."""
    while server_name(server.endpoint("", Protocol.HTTP)) != owner.folder.name:
        if owner.ended() is not None:
            if is_port_taken(server.log()):
                return False
            server.check_alive()
        if time.monotonic() > end:
            raise ServingError(
                f"the server was not ready in {timeout_s:g} s; give it longer, or find in its log "
                f"what it waits for. The log ends:\n{server.log_tail()}"
            )
        time.sleep(_POLL_S)
    return True


def _tail_of(log: str) -> str:
    """The last lines of a log."""
    return "\n".join(log.splitlines()[-_TAIL_LINES:])


def is_port_taken(log: str) -> bool:
    """Tell if the server itself, not one of its models, could not have one of its two ports."""
    return any(map(_PORT_TAKEN.match, log.splitlines()))


def _logged_errors(log: str) -> list[str]:
    """The lines of a log that report an error."""
    lines = log.splitlines()
    return [line for line in lines if _ERROR.match(line) and _HARMLESS not in line]


def _reason_of(log: str) -> str:
    """The reason of a failed server or model: the last error it logged, without the call stack."""
    errors = _logged_errors(log)
    said = _unquoted(errors[-1]) if errors else _tail_of(log)
    return f"Its log says: {said}"


def _unquoted(line: str) -> str:
    """The message of a line of the log, which quotes it as JSON does."""
    message = line.partition("] ")[2]
    with contextlib.suppress(ValueError):
        message = str(json.loads(message))
    return message.partition("\n\nAt:")[0].strip()
