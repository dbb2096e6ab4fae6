"""Whole files or none: atomic writes, content hashes, JSON that a person can diff."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_LOCK_WAIT_S = 30.0
_FLAT_LIST = re.compile(r"\[[^\[\]{}\"]*\]")


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old or its new content, never a part.

    Raises OSError if the folder cannot be written or the disk is full; `path` is then untouched.
    """
    write_atomic_bytes(path, text.encode())


def write_atomic_bytes(path: Path, content: bytes) -> None:
    """The same for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_beside(path) as (descriptor, temporary):
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[tuple[int, Path]]:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        yield descriptor, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing `path`. The lock file is not beside it, where git would see it.

    Raises TimeoutError if another run does not let go of it.
    """
    from filelock import FileLock, Timeout

    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"enginegate-{digest}.lock")
    try:
        lock.acquire(timeout=_LOCK_WAIT_S)
    except Timeout as error:
        raise TimeoutError(
            f"another run has been writing {path} for {_LOCK_WAIT_S:.0f} s"
        ) from error
    try:
        yield
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content; OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_folder(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder`, by its path inside the folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def sha256_of_json(value: object) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def readable_json(value: object) -> str:
    """Sorted JSON, one key a line and one list of numbers a line, so that a diff can be read.

    Raises ValueError for NaN or infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    return _FLAT_LIST.sub(lambda match: " ".join(match[0].split()), text) + "\n"


def parse_json(text: str) -> Any:
    """Parse JSON strictly: NaN and Infinity are refused. Raises ValueError."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
