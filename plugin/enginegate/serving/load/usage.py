"""Processor time that a server uses, its models' processes included. Linux only."""

import contextlib
import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12  # fields after the name, proc_pid_stat(5)


def processor_s(pid: int) -> float:
    """Seconds of processor time of a process and all that it started and still runs."""
    stats = dict(filter(None, map(_stat, Path("/proc").glob("[0-9]*/stat"))))
    family, waiting = set(), {pid}
    while waiting:
        family |= waiting
        waiting = {child for child, fields in stats.items() if int(fields[_PARENT]) in waiting}
    ticks = (int(stats[p][_USER]) + int(stats[p][_SYSTEM]) for p in family if p in stats)
    return sum(ticks) * _TICK_S


def _stat(path: Path) -> tuple[int, list[str]] | None:
    """A process and its fields after the name, which may hold spaces; None if it has ended."""
    with contextlib.suppress(OSError):
        return int(path.parent.name), path.read_text().rpartition(")")[2].split()
    return None
