"""Content-addressed store: what was built once from the same content is not built again.

An entry is a folder named by the SHA-256 of its key. It appears whole (built beside its place and
renamed into it) and carries a manifest with the hash of each of its files, checked on every use.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginegate.errors import StoreError
from enginegate.files import parse_json, readable_json, sha256_of_folder, sha256_of_json

MANIFEST = "manifest.json"
Key = Mapping[str, Any]
Build = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A verified entry.

    Attributes:
        folder: its files; never changed after it appeared.
        properties: what its builder returned, as JSON.
        built: whether this run built it.
        note: why it was built again although it was there; empty otherwise.
    """

    folder: Path
    properties: Mapping[str, Any] = field(default_factory=dict)
    built: bool = False
    note: str = ""


@dataclass(frozen=True)
class Store:
    """The folder that holds all entries, one subfolder per kind."""

    root: Path

    def get_or_build(self, kind: str, key: Key, build: Build) -> Entry:
        """The entry of `key`, built by `build(folder)` unless a whole one is there.

        `build` writes files into the folder it is given and returns JSON properties. A corrupt
        entry is removed, built again, and says so in `note`. Raises StoreError if the store cannot
        be written, and whatever `build` raises; in both cases nothing half-made stays.
        """
        folder = self.root / kind / sha256_of_json(key)[:32]
        fault = _fault(folder)
        if fault is None:
            return Entry(folder, _manifest(folder)["properties"])
        note = f"cached entry {folder} was corrupt ({fault}) and was built again" if fault else ""
        self._build(folder, key, build)
        return Entry(folder, _manifest(folder)["properties"], built=True, note=note)

    def _build(self, folder: Path, key: Key, build: Build) -> None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            _fill(temporary, key, build)
            _move_into_place(temporary, folder)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _unwritable(self, error: OSError) -> StoreError:
        reason = error.strerror or str(error)
        return StoreError(
            f"cannot write the engine cache {self.root}: {reason}; "
            "free space there or name another folder with --engine-cache"
        )


def read_entry(folder: Path) -> Entry:
    """An entry that was copied elsewhere. Raises ValueError if a file is not as it was."""
    fault = _fault(folder)
    if fault is not None:
        raise ValueError(fault or "it has no files")
    return Entry(folder, _manifest(folder)["properties"])


def _fill(folder: Path, key: Key, build: Build) -> None:
    properties = dict(build(folder))
    manifest = {"files": sha256_of_folder(folder), "key": dict(key), "properties": properties}
    (folder / MANIFEST).write_text(readable_json(manifest), encoding="utf-8")


def _move_into_place(temporary: Path, folder: Path) -> None:
    if folder.exists() and _fault(folder) is not None:
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if _fault(folder) is not None:  # else another run was first, with the same content
            raise


def _manifest(folder: Path) -> Any:
    return parse_json((folder / MANIFEST).read_text(encoding="utf-8"))


def _fault(folder: Path) -> str | None:
    """None for a whole entry, "" for a missing one, else what is wrong with it."""
    if not folder.exists():
        return ""
    try:
        expected = dict(_manifest(folder)["files"])
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError):
        return f"{MANIFEST} is missing or unreadable"
    found = {k: v for k, v in sha256_of_folder(folder).items() if k != MANIFEST}
    wrong = sorted(set(expected.items()) ^ set(found.items()))
    return f"{wrong[0][0]} does not match its hash" if wrong else None
