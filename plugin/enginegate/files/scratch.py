"""Temporary files, folders and locks, each held by the process that made it.

To hold one is to have an exclusive `flock` on it, which the system takes away when its process
ends, however it ends. So what nobody holds is what a dead process left, and `sweep` removes it.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SUFFIX = ".held"
_YOUNG_S = 1.0  # what was made a moment ago may not be held yet
_LOCK_WAIT_S = 30.0
_POLL_S = 0.05
_TURN_S = 0.5  # whoever waits must not disturb whoever measures
_PR_SET_PDEATHSIG = 1


def default_cache() -> Path:
    """Where the engine cache lies unless one is named."""
    given = os.environ.get("ENGINEGATE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{base}/enginegate").expanduser()


@contextlib.contextmanager
def scratch_folder(prefix: str = "enginegate-", parent: Path | None = None) -> Iterator[Path]:
    """A folder that is gone afterwards, or swept by the next run. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=parent))
    try:
        with _holding(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch_file(beside: Path) -> Iterator[Path]:
    """An empty file beside another, to be renamed over it; else gone afterwards. Raises OSError."""
    prefix = f".{beside.name}."
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=SUFFIX, dir=beside.parent)
    os.close(descriptor)
    try:
        with _holding(Path(name)):
            yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs of this user from writing `path`. The lock lies in the cache folder.

    Raises TimeoutError if another run does not let go of it, OSError if there can be no lock.
    """
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    lock = default_cache() / "locks" / f"{digest}{SUFFIX}"
    descriptor = _waited_for(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def alone_here(name: str) -> Iterator[int]:
    """Be the only one of this user on this machine, however long that takes to wait for.

    Yields the descriptor that holds the place; a child that inherits it holds it too, until it
    ends. Raises OSError if there can be no lock.
    """
    place = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}.lock")
    while (descriptor := _hold(place, os.O_CREAT)) is None:
        time.sleep(_TURN_S)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _waited_for(lock: Path, path: Path) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True)
    end_s = time.monotonic() + _LOCK_WAIT_S
    while (descriptor := _hold(lock, os.O_CREAT)) is None:
        if time.monotonic() > end_s:
            raise TimeoutError(f"another run has been writing {path} for {_LOCK_WAIT_S:.0f} s")
        time.sleep(_POLL_S)
    return descriptor


def ending_with_parent() -> Callable[[], None] | None:
    """The `preexec_fn` of a child that must not outlive this process, even where that is killed."""
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # loaded before the fork; Linux only
    return prctl and (lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))


def sweep(
    folder: Path, pattern: str, remove: Callable[[Path], None] = shutil.rmtree
) -> Iterator[Path]:
    """Remove what dead processes of this user left in `folder`; yield the paths.

    `pattern` is a glob, completed by the suffix of all that is held; `remove` is for folders.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be read holds nothing of ours
        for path in folder.glob(f"{pattern}{SUFFIX}"):
            if _is_old_and_own(path) and _removed(path, remove):
                yield path


def _is_old_and_own(path: Path) -> bool:
    with contextlib.suppress(OSError):
        found = path.lstat()
        kind = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
        return kind and found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG_S
    return False


def _removed(path: Path, remove: Callable[[Path], None]) -> bool:
    descriptor = None
    with contextlib.suppress(OSError):  # of another file system, or removed by another run
        descriptor = _hold(path)
        if descriptor is not None:
            remove(path) if path.is_dir() else path.unlink()
    if descriptor is not None:
        os.close(descriptor)
    return not path.exists()


@contextlib.contextmanager
def _holding(path: Path) -> Iterator[None]:
    descriptor = None
    with contextlib.suppress(OSError):  # a file system without locks: never swept either
        descriptor = _hold(path)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _hold(path: Path, flags: int = 0) -> int | None:
    """A descriptor that holds the file or folder; None if another process holds it.

    Raises OSError, also where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held, or removed by its holder meanwhile
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
