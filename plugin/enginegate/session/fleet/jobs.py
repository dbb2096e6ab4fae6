"""What a fleet has to run: shards by kind of machine, and the order for each of them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginegate.config import Options, Shard
from enginegate.errors import FleetError
from enginegate.session.estimate import EXPORT_S, variant_s
from enginegate.session.fleet.shard import PROJECT, Order
from enginegate.session.shards import split
from enginegate.variants import Variant
from enginegate.verdicts import Refresh


@dataclass(frozen=True)
class Job:
    """A shard, to be run by any one machine of its kind.

    Attributes:
        kind: name of the kind; empty where all machines are of one.
        resource: of Ray, that its machines have; empty for any.
        shard: which part.
        variants: its engines.
        cost_s: estimated seconds where nothing is in the cache.
    """

    kind: str
    resource: str
    shard: Shard
    variants: tuple[Variant, ...]
    cost_s: int

    @property
    def name(self) -> str:
        """`shard 2 of 6 on arm`."""
        where = f" on {self.kind}" if self.kind else ""
        return f"shard {self.shard.number} of {self.shard.count}{where}"

    @property
    def short(self) -> str:
        """`arm 2/6`, before the lines that it prints."""
        return f"{self.kind} {self.shard.number}/{self.shard.count}".strip()

    @property
    def file(self) -> str:
        """`arm-2-of-6`, of its report and its log."""
        parts = (self.kind, f"{self.shard.number}-of-{self.shard.count}")
        return "-".join(filter(None, parts))


def jobs_of(options: Options, machines: Mapping[str, int]) -> list[Job]:
    """The shards for so many machines of each kind, the longest first."""
    fleet, whole = options.fleet, options.variants
    assert fleet  # noqa: S101 - asked for, or nobody is here
    count = fleet.shards or max(1, min(max(machines.values()), len(whole)))
    parts = split({v: variant_s(v, options) for v in whole}, count)
    kinds = fleet.kinds or {"": ""}
    found = [
        Job(kind, resource, Shard(number, count, len(kinds)), part, _cost_s(part, options))
        for kind, resource in kinds.items()
        for number, part in enumerate(parts, start=1)
    ]
    return sorted(found, key=lambda job: -job.cost_s)


def _cost_s(part: Sequence[Variant], options: Options) -> int:
    exports_s = EXPORT_S * len({variant.model for variant in part})
    return exports_s + sum(variant_s(variant, options) for variant in part)


def order_of(job: Job, options: Options, started_in: Path, spoken: Sequence[str]) -> Order:
    """What a machine is told to do for a job. Raises FleetError for what cannot be done there."""
    root = options.rootpath
    own = [f"--gate-shard={job.shard.number}/{job.shard.count}x{job.shard.kinds}"]
    own += [f"--gate-kind={job.kind}"] if job.kind else []
    own += [f"--gate-{name}=" for name in ("fleet", "report-html", "report-markdown")]
    inside = re.compile(rf"{re.escape(str(root))}(?![^/])")  # not of a folder beside it
    moved = [inside.sub(lambda _: PROJECT, str(word)) for word in spoken]
    return Order(
        arguments=(*moved, f"--rootdir={PROJECT}", *own),
        folder=_inside(started_in, root, "pytest was started in"),
        owns_cache=not options.engine_cache.is_relative_to(root),
        baselines=""
        if options.refresh is Refresh.NONE or options.dry_run
        else _inside(options.baselines, root, "baselines are written into"),
    )


def _inside(path: Path, root: Path, what: str) -> str:
    """The path relative to the project, which is all that goes to the machines."""
    if not path.is_relative_to(root):
        raise FleetError(
            f"{what} {path}, outside the project {root}: the machines of a fleet get the project "
            "only; start pytest inside it, with all it needs in it"
        )
    return str(path.relative_to(root))


def excluded(options: Options) -> Iterator[str]:
    """What the machines do not get of the project, as lines of a .gitignore."""
    root = options.rootpath
    yield from ("/.tox", "/.enginegate", ".pytest_cache")
    if options.engine_cache.is_relative_to(root):
        yield f"/{os.path.relpath(options.engine_cache, root)}"
