"""Files whole or not at all, read with one error for all damage; and what a process holds."""

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
from enginegate.files.scratch import (
    SUFFIX,
    default_cache,
    ending_with_parent,
    locked,
    scratch_file,
    scratch_folder,
    sweep,
)

__all__ = [
    "SUFFIX", "damage", "default_cache", "ending_with_parent", "locked", "parse_json", "read_text",
    "readable_json", "reading", "scratch_file", "scratch_folder", "sha256_of", "sha256_of_folder",
    "sha256_of_json", "sweep", "write_atomic", "write_atomic_bytes", "writing",
]  # fmt: skip
