"""Whole files or none: atomic writes, content hashes, JSON that a person can diff."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginegate.errors import EngineGateError, FileError
from enginegate.files.scratch import scratch_file

_CHUNK_BYTES = 1 << 20
_MOST_BYTES = 1 << 30
_MOST_DIGITS = 18  # of a whole number: what 64 bits hold
_LARGEST = 1e300
_LONGEST = 300  # letters of a reason
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_FLAT_LIST = re.compile(r"\[[^\[\]{}\"]*\]")


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either its old or its new content, never a part.

    Halves of characters, which no file can hold, become escapes. Raises
    FileError if the folder cannot be written or the disk is full; `path` is then untouched.
    """
    write_atomic_bytes(path, text.encode(errors="backslashreplace"))


def write_atomic_bytes(path: Path, content: bytes) -> None:
    """The same for bytes."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_file(path) as temporary:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what keeps `path` from being written into one FileError that says what to do."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"cannot write {path}: {reason}; free space, make its folder writable, or name "
            "another place"
        ) from error


@contextlib.contextmanager
def reading(path: Path, what: str, way_out: str, kind: type[EngineGateError]) -> Iterator[None]:
    """Turn whatever a damaged file brings about inside into one error of `kind`.

    It names the file (`what` it is and where), the damage, and the way out.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot read {what} {path}: {error.strerror or error}; {way_out}") from error
    except _DAMAGE as error:
        raise kind(f"{what} {path} is not valid ({damage(error)}); {way_out}") from error


def damage(error: BaseException) -> str:
    """The damage that an exception tells of, in one line."""
    said = " ".join(str(error).split())[:_LONGEST]
    if isinstance(error, KeyError):
        return f"{said} is missing"
    return said or type(error).__name__


def read_text(path: Path, most_bytes: int = _MOST_BYTES) -> str:
    """The text of a file, UTF-8. Raises OSError, or ValueError for what is not such a text."""
    if not path.is_file() and path.exists():
        raise ValueError("it is not a file")
    if (size := path.stat().st_size) > most_bytes:
        raise ValueError(f"{size >> 20} MB, at most {most_bytes >> 20} MB are read")
    return path.read_text(encoding="utf-8")


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


def parse_json(text: str, *, halves: bool = False) -> Any:
    """Parse JSON strictly. Raises ValueError for all else, and for what nobody can go on with.

    That is NaN, Infinity, numbers beyond 1e300, brackets nested too deep and, but for `halves`,
    halves of characters (surrogates).
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_float, parse_int=_int
        )
    except RecursionError as error:
        raise ValueError("brackets are nested too deep") from error
    if not halves and "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if abs(value) > _LARGEST:
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too large")
    return int(digits)
