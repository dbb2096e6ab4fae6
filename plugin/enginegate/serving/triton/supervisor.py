"""Owns a server, its folder and its shared memory, and removes them when its parent is gone.

Started by `server.py` as a script, in a session of its own. It makes the folder and prints a line
of JSON with its path. Each line of standard input then orders a server to be started; every
answer is a line of JSON: `{"started": pid}`, and later `{"ended": status}` if the server ends by
itself; or `{"cannot": reason}` if its program cannot be run. At the end of standard input, which a
killed parent gives too, it stops the server and removes what is left. Standard library only: it
must start at once and cannot fail on an import.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LOG = "server.log"
SEGMENTS = Path("/dev/shm")  # noqa: S108 - where the system keeps named shared memory
_WAIT_S = 0.2
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve orders until standard input ends or the parent is gone."""
    parent, stop_wait_s = os.getppid(), float(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the server would inherit
    os.umask(0o077)  # files, sockets and shared memory of the server are this user's alone
    folder = Path(tempfile.mkdtemp(prefix="enginegate-server-", suffix=".held"))
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)  # as `scratch` does: not swept
    server: subprocess.Popen[bytes] | None = None
    try:
        (SEGMENTS / folder.name).mkdir()
        _say({"folder": str(folder)})
        for order in _orders(parent):
            server = _obey(order, server, folder)
    finally:
        _stop(server, stop_wait_s)
        clean(folder)


def clean(folder: Path) -> None:
    """Remove the folder, and that of the socket and the shared memory segments named after it."""
    shutil.rmtree(SEGMENTS / folder.name, ignore_errors=True)
    for segment in SEGMENTS.glob(f"*{folder.name}*"):
        segment.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _orders(parent: int) -> Iterator[Mapping[str, Any] | None]:
    """Each order as it comes, None while there is none; ends with the parent."""
    pending = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], _WAIT_S)[0]:
            yield None
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, pending = (pending + read).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _obey(
    order: Mapping[str, Any] | None, server: "subprocess.Popen[bytes] | None", folder: Path
) -> "subprocess.Popen[bytes] | None":
    if order is not None:
        return _started(order, folder)
    if server is not None and server.poll() is not None:
        _kill_group(server)
        _say({"ended": server.returncode})
        return None
    return server


def _started(order: Mapping[str, Any], folder: Path) -> "subprocess.Popen[bytes] | None":
    try:
        server = _start(order, folder)
    except (OSError, subprocess.SubprocessError) as error:
        _say({"cannot": str(error)})
        return None
    _say({"started": server.pid})
    return server


def _start(order: Mapping[str, Any], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            order["command"],
            env=order["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - there is one thread
        )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(server: "subprocess.Popen[bytes] | None", wait_s: float) -> None:
    if server is None:
        return
    server.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(wait_s)
    _kill_group(server)
    server.wait()


def _kill_group(server: "subprocess.Popen[bytes]") -> None:
    """End the server's session: also the processes of its models."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _say(answer: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
