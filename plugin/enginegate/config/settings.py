"""An option and the readers of its value: from the command line, else from pyproject.toml."""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from enginegate.errors import OptionError
from enginegate.files import read_text, reading

if TYPE_CHECKING:
    import pytest

Number = TypeVar("Number", int, float)

_RANGE = re.compile(r"(\d+):(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: its name as a key, `max_slowdown`.
        metavar: stands for its value in texts; empty for a switch.
        read: reads its value. Raises OptionError for one that does not fit.
        help: text of `pytest --help`, where `{}` stands for the default.
        default: value where none is given; a path is relative to the root folder.
        key: it is a key of pyproject.toml too; else it only exists on the command line.
        word: stands in the flag in place of the name.
        attribute: the attribute that holds the value; the same as the name unless given.
        argparse: further arguments for the parser.
    """

    name: str
    metavar: str
    read: "Callable[[Settings, Option], Any]"
    help: str
    default: Any = None
    key: bool = True
    word: str = ""
    attribute: str = ""
    argparse: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        """Its name on the command line, which no other plugin is likely to have."""
        return flag_of(self.word or self.name)

    @property
    def dest(self) -> str:
        """Its name in pytest's namespace, which no other plugin has."""
        return _dest_of(self.name)

    @property
    def written(self) -> str:
        """The default as a user would write it."""
        parts = self.default if isinstance(self.default, tuple) else (self.default,)
        return ",".join(str(part).removesuffix(".0") for part in parts)


def flag_of(name: str) -> str:
    """The flag of an option on the command line."""
    return "--gate-" + name.replace("_", "-")


def _dest_of(name: str) -> str:
    return f"enginegate_{name}"


def given(config: "pytest.Config", name: str) -> Any:
    """The value of an option on the command line; None if it was not given."""
    return config.getoption(_dest_of(name), None)


@dataclass(frozen=True)
class Settings:
    """Where values come from: the command line, which wins, and a table of pyproject.toml."""

    config: "pytest.Config"
    options: Collection[Option]
    table: Mapping[str, Any]

    def values(self) -> dict[str, Any]:
        """The value of every option by its attribute. Raises OptionError."""
        return {row.attribute or row.name: row.read(self, row) for row in self.options}


def raw(get: Settings, option: Option) -> Any:
    """The value as it was given; None if it was not."""
    value = given(get.config, option.name)
    return get.table.get(option.name) if value is None else value


def switch(get: Settings, option: Option) -> bool:
    """On or off."""
    return bool(raw(get, option))


def text(get: Settings, option: Option) -> str:
    """A text."""
    return str(raw(get, option) or option.default or "")


def program(get: Settings, option: Option) -> str:
    """A program; one with a folder in its name is relative to where pytest was started."""
    name = text(get, option)
    return str(Path(get.config.invocation_params.dir, name)) if "/" in name else name


def words(get: Settings, option: Option) -> tuple[str, ...]:
    """Words with commas between them, or a list."""
    value = raw(get, option) or ()
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def counts(get: Settings, option: Option) -> tuple[int, ...]:
    """Positive whole numbers, each once; `1:8` and `0:32:4` are ranges, both ends inside."""
    found = [number for word in words(get, option) for number in _counts(option.flag, word)]
    return tuple(dict.fromkeys(found)) or tuple(option.default)


def count(get: Settings, option: Option) -> int:
    """A positive whole number."""
    value = raw(get, option)
    return int(option.default) if value is None else number(option.flag, value, int)


def count_or_zero(get: Settings, option: Option) -> int:
    """A whole number from zero on."""
    return 0 if raw(get, option) in (0, "0") else count(get, option)


def seconds(get: Settings, option: Option) -> float:
    """A positive number."""
    value = raw(get, option)
    return float(option.default) if value is None else number(option.flag, value, float)


def path(get: Settings, option: Option) -> Path | None:
    """A path: relative to where pytest was started, or in the table to the root folder."""
    if value := given(get.config, option.name):
        return Path(get.config.invocation_params.dir, value)
    stored = get.table.get(option.name) or option.default
    return Path(get.config.rootpath, stored) if stored else None


def choice(get: Settings, option: Option) -> StrEnum:
    """One of the words that the default is one of."""
    value = text(get, option)
    kind: type[StrEnum] = type(option.default)
    try:
        return kind(value)
    except ValueError:
        raise OptionError(
            f"{option.flag} {value!r} is not one of {', '.join(kind)}; "
            f"give it as {option.flag}=VALUE"
        ) from None


def _counts(flag: str, word: str) -> list[int]:
    found = _RANGE.fullmatch(word)
    if found is None:
        return [number(flag, word, int)]
    first, last, step = (int(part or 1) for part in found.groups())
    counts = [count for count in range(first, last + 1, max(step, 1)) if count > 0]
    if not counts:
        raise OptionError(f"{flag} {word!r} is an empty range: write it as FIRST:LAST")
    return counts


def number(flag: str, value: Any, kind: type[Number]) -> Number:
    """A positive number. Raises OptionError."""
    try:
        found = kind(value)
    except (TypeError, ValueError):
        found = kind(0)
    if not 0 < found < float("inf"):
        raise OptionError(f"{flag} {value!r} is not a positive {kind.__name__}")
    return found


def read_table(config: "pytest.Config") -> Mapping[str, Any]:
    """`[tool.enginegate]` of the root folder's pyproject.toml; empty if there is none.

    Raises OptionError for a file that cannot be read.
    """
    return mapping(_tools(config), "enginegate")


def opted_in(config: "pytest.Config") -> bool:
    """`[tool.enginegate]` is in the root folder's pyproject.toml. Raises OptionError as above."""
    return "enginegate" in _tools(config)


def _tools(config: "pytest.Config") -> Mapping[str, Any]:
    path = config.rootpath / "pyproject.toml"
    if not path.exists():
        return {}
    with reading(path, "the settings", "correct it", OptionError):
        content = tomllib.loads(read_text(path))
    return mapping(content, "tool")


def refuse_unknown(get: Settings, where: str, *tables: str) -> None:
    """Raise OptionError for a key that is neither an option's nor a table's."""
    known = sorted([*(option.name for option in get.options if option.key), *tables])
    if unknown := sorted(set(get.table) - set(known)):
        raise OptionError(f"[{where}] has unknown keys {unknown}: use {known}")


def mapping(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table inside a table; empty if it is not there. Raises OptionError for something else."""
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise OptionError(f"{key} in pyproject.toml is not a table")
    return value
