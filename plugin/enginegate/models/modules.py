"""The modules that a folder's `modules.json` lists: the steps of sentence-transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginegate.errors import ModelError
from enginegate.files import parse_json, read_text, reading

MODULES = "modules.json"
LIBRARY = "sentence_transformers"


@dataclass(frozen=True)
class Module:
    """A module of a folder.

    Attributes:
        home: the model's folder.
        path: its own folder in it; empty where it is the model's.
        type: its class with its package.
    """

    home: Path
    path: str
    type: str

    @property
    def folder(self) -> Path:
        """Its own folder."""
        return self.home / self.path

    @property
    def kind(self) -> str:
        """The name of its class."""
        return self.type.rpartition(".")[2]

    @property
    def is_foreign(self) -> bool:
        """Tell if its class is none of sentence-transformers' own."""
        return not self.type.startswith(f"{LIBRARY}.")

    @property
    def routed(self) -> tuple["Module", ...]:
        """Those that it routes texts to; none where it is no router."""
        said = _content(self.folder / "router_config.json") or {}
        inner = said.get("types", {}).items()
        return tuple(Module(self.folder, path, kind) for path, kind in inner)


def has_modules(folder: Path) -> bool:
    """Tell if a folder says its modules."""
    return (folder / MODULES).is_file()


def read_modules(folder: Path) -> tuple[Module, ...]:
    """The modules of a folder in order; none where it does not say them. Raises ModelError."""
    path = folder / MODULES
    with reading(path, "the model's file", "fetch it again", ModelError):
        return tuple(Module(folder, part["path"], part["type"]) for part in _content(path) or ())


def _content(path: Path) -> Any:
    return parse_json(read_text(path)) if path.exists() else None
