"""Other programs: git, and child processes that take orders and answer, JSON a line each."""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

NO_PROGRAM = 127  # status of a program that is not installed, as a shell gives it
_CHUNK_BYTES = 1 << 20


def git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run git in a folder; `NO_PROGRAM` is its status where it is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, NO_PROGRAM, "", str(error))


class Child:
    """A process that takes orders on its standard input and answers on its standard output."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.command = command
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
        )
        self._orders = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)
        self._rest = b""

    def order(self, **order: Any) -> None:
        """Send an order. Of a process that has ended, the answer says so."""
        with contextlib.suppress(OSError):
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()

    def answer(self, timeout_s: float | None = None) -> Any:
        """Its next answer. Raises TimeoutError if it keeps silent, EOFError if it has ended."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            left_s = None if end_s is None else end_s - time.monotonic()
            if not self.has_answer(left_s):
                raise TimeoutError("does not answer")
            parts.append(os.read(self._answers.fileno(), _CHUNK_BYTES))
            if not parts[-1]:
                raise EOFError(f"ended with status {self._process.wait()}")
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return json.loads(line)

    def has_answer(self, wait_s: float | None) -> bool:
        """Wait until it says something or ends, for `wait_s` at most; None waits on."""
        if b"\n" in self._rest:  # it came with the answer before
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            return bool(selector.select(None if wait_s is None else max(wait_s, 0)))

    def close(self, wait_s: float = 0.0) -> None:
        """Tell it to end by closing its input; kill it if it has not in `wait_s`."""
        with contextlib.suppress(OSError):
            self._orders.close()
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
