"""What runs that were killed left behind, removed when the next one begins."""

import glob
import tempfile
from collections.abc import Iterator
from pathlib import Path

from enginegate.cache import BUILDING
from enginegate.config import Options
from enginegate.engines import PLANS, SAVING
from enginegate.files import default_cache, sweep
from enginegate.machine import git
from enginegate.serving import clean

_AGAINST = "enginegate-against-"


def sweep_leftovers(options: Options) -> list[Path]:
    """Remove what dead processes of this user left where this run works; what was removed."""
    temporary = Path(tempfile.gettempdir())
    swept = [path for folder, pattern in _places(options) for path in sweep(folder, pattern)]
    swept += sweep(temporary, "enginegate-*", clean)
    if any(path.name.startswith(_AGAINST) for path in swept):
        git(options.rootpath, "worktree", "prune")
    return swept


def _places(options: Options) -> Iterator[tuple[Path, str]]:
    for pattern in (f"*/{BUILDING}*", f"*/{PLANS}*", "timings/.*"):
        yield options.engine_cache, pattern
    yield default_cache(), "locks/*"
    yield from ((options.baselines, pattern) for pattern in ("*/.*", "history/*/.*"))
    if options.save_engines:
        yield options.save_engines, f"*/{SAVING}*"
    yield from ((path.parent, f".{glob.escape(path.name)}.*") for path in options.reports)
