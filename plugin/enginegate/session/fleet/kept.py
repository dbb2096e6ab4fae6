"""What is kept of a fleet's run as it comes in, whatever becomes of the rest."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginegate.files import readable_json, write_atomic
from enginegate.session.fleet.jobs import Job

_END_LINES = 3
SHARDS = "shards.json"


@dataclass(frozen=True)
class Kept:
    """A folder with the report of each shard, its log, and when and where each ran.

    Attributes:
        folder: emptied by the next run.
        baselines: where those of all machines are kept.
        ran: of each finished shard: its name, node, host, tries, exit status and seconds since
            1970 of its begin and end.
    """

    folder: Path
    baselines: Path
    ran: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def shown(self) -> Path:
        """The folder, as seen from here."""
        return Path(os.path.relpath(self.folder))

    def empty(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def log(self, job: Job, line: str) -> None:
        """Note a line that a shard printed."""
        with self._log(job).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")

    def end_of_log(self, job: Job) -> str:
        """The last of what a shard printed."""
        path = self._log(job)
        lines = path.read_text("utf-8").split("\n") if path.exists() else []
        return " / ".join([line for line in lines if line.strip()][-_END_LINES:]) or "it is silent"

    def keep(self, job: Job, found: Mapping[str, Any], where: Mapping[str, Any]) -> None:
        """Keep what a shard reported. Raises FileError."""
        write_atomic(self.folder / f"{job.file}.json", found["report"])
        times = {key: found[key] for key in ("status", "began_s", "ended_s")}
        self.ran[job.name] = {**where, **times}
        write_atomic(self.folder / SHARDS, readable_json(self.ran))

    def reports(self) -> list[Path]:
        """The reports that came in."""
        return sorted(path for path in self.shown.glob("*.json") if path.name != SHARDS)

    def _log(self, job: Job) -> Path:
        return self.folder / f"{job.file}.log"
