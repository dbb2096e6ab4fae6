"""Files whole or not at all, one error for all damage; what a process holds; texts going out."""

from enginegate.files.content import (
    damage,
    parse_json,
    read_text,
    readable_json,
    reading,
    sha256_of,
    sha256_of_folder,
    sha256_of_json,
    write_atomic,
    write_atomic_bytes,
    writing,
)
from enginegate.files.outlets import (
    for_markdown,
    for_page,
    for_terminal,
    log_command,
    translated,
)
from enginegate.files.scratch import (
    SUFFIX,
    alone_here,
    default_cache,
    ending_with_parent,
    locked,
    scratch_file,
    scratch_folder,
    sweep,
)

__all__ = [
    "SUFFIX", "alone_here", "damage", "default_cache", "ending_with_parent", "for_markdown",
    "for_page", "for_terminal", "locked", "log_command", "parse_json", "read_text",
    "readable_json", "reading", "scratch_file", "scratch_folder", "sha256_of", "sha256_of_folder",
    "sha256_of_json", "sweep", "translated", "write_atomic", "write_atomic_bytes", "writing",
]  # fmt: skip
