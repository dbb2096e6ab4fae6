"""Content-addressed store: what was built once from the same content is not built again.

An entry is a folder named by the SHA-256 of its key. It appears whole (built beside its place and
renamed into it) and carries a manifest with the hash of each of its files, checked on every use.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from enginegate.errors import StoreError
from enginegate.files import (
    parse_json,
    read_text,
    readable_json,
    reading,
    scratch_folder,
    sha256_of_folder,
    sha256_of_json,
)

MANIFEST = "manifest.json"
BUILDING = ".building-"
_SELF = "sha256"  # of the rest of the manifest: properties count as files do
Key = Mapping[str, Any]
Build = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A verified entry.

    Attributes:
        folder: its files; never changed after it appeared.
        properties: what its builder returned, as JSON.
        key: what it was built from, as JSON; empty where that is not known.
        files: hash of each file but the manifest, as it was verified; empty where it was not.
        built: whether this run built it.
        note: why it was built again although it was there; empty otherwise.
    """

    folder: Path
    properties: Mapping[str, Any] = field(default_factory=dict)
    key: Mapping[str, Any] = field(default_factory=dict)
    built: bool = False
    note: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """The folder that holds all entries, one subfolder per kind; `making` hears of new ones."""

    root: Path
    making: Callable[[str], None] = field(default=lambda _: None, compare=False, repr=False)

    def get_or_build(self, kind: str, key: Key, build: Build) -> Entry:
        """The entry of `key`, built by `build(folder)` unless a whole one is there.

        `build` writes files into the folder it is given and returns JSON properties. An entry
        that is damaged in any way is built again, and says so in `note`. Raises StoreError if the
        store cannot be written, and whatever `build` raises; in both cases nothing half-made stays.
        """
        folder, note = self.root / kind / sha256_of_json(key)[:32], ""
        if os.path.lexists(folder):
            try:
                return _in_place(folder)
            except StoreError as error:
                note = str(error)
        self.making(kind)
        self._build(folder, key, build)
        return replace(_in_place(folder), built=True, note=note)

    def has_any(self, kind: str) -> bool:
        """Tell if there is any entry of a kind, whole or not."""
        return any(not path.name.startswith(".") for path in self.root.glob(f"{kind}/*"))

    def find(self, kind: str, name: str) -> Entry | None:
        """The entry of that name; None if it is not there or damaged."""
        try:
            return _in_place(self.root / kind / name)
        except StoreError:
            return None

    def _build(self, folder: Path, key: Key, build: Build) -> None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with scratch_folder(BUILDING, folder.parent) as temporary:
                made = temporary / "entry"
                made.mkdir()
                _fill(made, key, build)
                _move_into_place(made, folder, temporary / "damaged")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreError:
        where = f" ({error.filename})" if error.filename else ""
        return StoreError(
            f"cannot write the engine cache {self.root}: {error.strerror or error}{where}; "
            "free space there or name another folder with --gate-engine-cache"
        )


def read_entry(folder: Path) -> Entry:
    """An entry that was copied elsewhere. Raises OSError, ValueError and others for all damage."""
    manifest = _whole(folder)
    return Entry(folder, manifest["properties"], manifest["key"], files=manifest["files"])


def _fill(folder: Path, key: Key, build: Build) -> None:
    properties = dict(build(folder))
    content = {"files": sha256_of_folder(folder), "key": dict(key), "properties": properties}
    manifest = parse_json(readable_json(content))  # as it will be read: keys are texts
    text = readable_json({**manifest, _SELF: sha256_of_json(manifest)})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _move_into_place(made: Path, folder: Path, damaged: Path) -> None:
    if os.path.lexists(folder) and not _is_whole(folder):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o755)  # else it cannot be moved
        folder.rename(damaged)
    try:
        made.rename(folder)
    except OSError:
        if not _is_whole(folder):  # else another run was first, with the same content
            raise


def _is_whole(folder: Path) -> bool:
    try:
        _in_place(folder)
    except StoreError:
        return False
    return True


def _in_place(folder: Path) -> Entry:
    """The entry, in its place. Raises StoreError with all that can be wrong."""
    with reading(folder, "cached entry", "it was built again", StoreError):
        found = read_entry(folder)
        if sha256_of_json(found.key)[:32] != folder.name:
            raise ValueError("it is of another key")
        return found


def _whole(folder: Path) -> dict[str, Any]:
    """The manifest of a whole entry. Raises OSError, ValueError and others for all damage."""
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError("it is not a folder")
    manifest = dict(parse_json(read_text(folder / MANIFEST)))
    if manifest.pop(_SELF, "") != sha256_of_json(manifest):
        raise ValueError(f"{MANIFEST} does not match its hash, or is of an older version")
    found = {k: v for k, v in sha256_of_folder(folder).items() if k != MANIFEST}
    if wrong := sorted(set(manifest["files"].items()) ^ set(found.items())):
        raise ValueError(f"{wrong[0][0]} does not match its hash")
    return manifest
