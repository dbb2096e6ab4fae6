"""Texts on their way out: one function for each kind of output, and all writers use it.

A model's name, a library's message, a server's answer or a text of the corpus may hold whatever a
stranger wrote. It is shown as what it is, and nothing acts upon it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar

Record = TypeVar("Record")

# Controls but tab and newline, what turns the direction of writing or cannot be seen, lone halves
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_COMMAND = re.compile(r"\A(\s*)(?=::)|(?<=#)(?=#\w*\[)")  # of GitHub; of others, wherever it stands
_NEXT_LINE = re.compile(r"\n(?!  \| )")
_ACTING = re.compile(r"[\\`*_{}\[\]()#+!|~&<>@]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
_FIRST = re.compile(r"\A(\d*)([-=.])(?=[-= ])")  # would begin a list or underline what is before
_FOUND = re.compile(  # mentions but not `recall@10`, links, references: found in finished text too
    r"(?<=(?<!\w)@)(?=\w)|(?<=\w@)(?=\w)(?!\d+(?![\w.-]))"
    r"|(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=#)(?=\d)|(?<=\bGH-)(?=\d)",
    re.IGNORECASE,
)
_CUT = "&#8203;"  # a space without width


def for_page(text: str) -> str:
    """A text of a page: every character that is not seen is shown as its escape."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def for_terminal(text: str) -> str:
    """A line of a terminal or a log: further lines are marked, commands of CI systems broken."""
    shown = _COMMAND.sub(lambda found: f"{found[1] or ''}\\", for_page(text))
    return _NEXT_LINE.sub("\n  | ", shown)


def log_command(level: str, title: str, text: str) -> str:
    """A workflow command of GitHub, which is one line."""
    escaped = for_page(text).replace("%", "%25").replace("\n", "%0A")
    return f"::{level} title={title}::{escaped}"


def for_markdown(text: str) -> str:
    """A text that Markdown, HTML and what GitHub looks for in both leave alone, on one line."""
    cut = _FOUND.sub("\0", for_page(" ".join(text.split())))
    plain = _ACTING.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), cut)
    return _FIRST.sub(r"\1\\\2", plain).replace("\0", _CUT)


def translated(record: Record, write: Callable[[str], str]) -> Record:
    """The record with every text inside written by `write`, but our own words (enumerations)."""
    return _translated(record, write)  # type: ignore[no-any-return]


def _translated(value: Any, write: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return value if isinstance(value, Enum) else write(value)
    if isinstance(value, Mapping):
        return {_translated(k, write): _translated(item, write) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_translated(item, write) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _translated(getattr(value, f.name), write) for f in fields(value)}
        return replace(value, **parts)
    return value
