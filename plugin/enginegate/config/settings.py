"""Settings from the command line, else from `[tool.enginegate]`, checked for their types."""

import re
import tomllib
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import pytest

from enginegate.errors import OptionError

Number = TypeVar("Number", int, float)
Choice = TypeVar("Choice", bound=StrEnum)

_RANGE = re.compile(r"(\d+):(\d+)(?::(\d+))?")


class Settings:
    """Settings by name; the command line wins over the table.

    Every method raises OptionError for a value that does not fit.
    """

    def __init__(self, config: pytest.Config, table: Mapping[str, Any]) -> None:
        self._config, self._table = config, table

    def raw(self, name: str) -> Any:
        """The value as it was given; None if it was not."""
        given = self._config.getoption(name)
        return self._table.get(name) if given is None else given

    def text(self, name: str, default: str) -> str:
        """A text."""
        return str(self.raw(name) or default)

    def words(self, name: str) -> tuple[str, ...]:
        """Words with commas between them, or a list."""
        value = self.raw(name) or ()
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(str(part).strip() for part in parts if str(part).strip())

    def counts(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Positive whole numbers, each once; `1:8` and `0:32:4` are ranges, both ends inside."""
        found = [number for word in self.words(name) for number in _counts(name, word)]
        return tuple(dict.fromkeys(found)) or default

    def count(self, name: str, default: int) -> int:
        """A positive whole number."""
        value = self.raw(name)
        return default if value is None else number(name, value, int)

    def seconds(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.raw(name)
        return default if value is None else number(name, value, float)

    def path(self, name: str) -> Path | None:
        """A path: relative to where pytest was started, or in the table to the root folder."""
        if given := given_path(self._config, name):
            return given
        stored = self._table.get(name)
        return self._config.rootpath / stored if stored else None


def _counts(name: str, word: str) -> list[int]:
    found = _RANGE.fullmatch(word)
    if found is None:
        return [number(name, word, int)]
    first, last, step = (int(part or 1) for part in found.groups())
    counts = [count for count in range(first, last + 1, max(step, 1)) if count > 0]
    if not counts:
        flag = name.replace("_", "-")
        raise OptionError(f"--{flag} {word!r} is an empty range: write it as FIRST:LAST")
    return counts


def choice(name: str, value: str, kind: type[Choice]) -> Choice:
    """One of the words of an option. Raises OptionError."""
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(kind)
        raise OptionError(
            f"--{name} {value!r} is not one of {allowed}; give it as --{name}=VALUE"
        ) from None


def number(name: str, value: Any, kind: type[Number]) -> Number:
    """A positive number. Raises OptionError."""
    try:
        found = kind(value)
    except (TypeError, ValueError):
        found = kind(0)
    if not 0 < found < float("inf"):
        flag = name.replace("_", "-")
        raise OptionError(f"--{flag} {value!r} is not a positive {kind.__name__}")
    return found


def read_table(config: pytest.Config) -> Mapping[str, Any]:
    """`[tool.enginegate]` of the root folder's pyproject.toml; empty if there is none.

    Raises OptionError for a file that cannot be read.
    """
    path = config.rootpath / "pyproject.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"cannot read {path}: {error}") from error
    return mapping(mapping(content, "tool"), "enginegate")


def refuse_unknown(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise OptionError for a key that is not known."""
    if unknown := sorted(set(table) - set(known)):
        raise OptionError(f"[{where}] has unknown keys {unknown}: use {sorted(known)}")


def mapping(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table inside a table; empty if it is not there. Raises OptionError for something else."""
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise OptionError(f"{key} in pyproject.toml is not a table")
    return value


def given_path(config: pytest.Config, option: str) -> Path | None:
    """A path of the command line, relative to where pytest was started; None if not given."""
    value: str | None = config.getoption(option)
    return config.invocation_params.dir / value if value else None
