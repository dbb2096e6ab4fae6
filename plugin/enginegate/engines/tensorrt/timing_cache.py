"""TensorRT's kernel timings, kept on disk so that a second build of a machine is quick."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from enginegate.files import write_atomic_bytes

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class TimingCacheFile:
    """One file for one TensorRT version, GPU and driver; None keeps nothing.

    The file is the SHA-256 of the content, then the content: TensorRT never reads a damaged one.
    """

    path: Path | None

    @classmethod
    def in_folder(cls, folder: Path | None, runtime: str) -> "TimingCacheFile":
        """The file for `runtime`, which names version, GPU and driver."""
        name = f"timing-{hashlib.sha256(runtime.encode()).hexdigest()[:16]}.cache"
        return cls(folder / name if folder else None)

    def read(self) -> bytes:
        """The kept timings; empty if there are none, or they are damaged."""
        if self.path is None or not self.path.exists():
            return b""
        stored = self.path.read_bytes()
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == digest else b""

    def write(self, content: bytes) -> None:
        """Keep it, whole or not at all."""
        if self.path is not None:
            write_atomic_bytes(self.path, hashlib.sha256(content).digest() + content)
