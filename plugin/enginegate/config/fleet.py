"""The machines that run the shards of a fleet: those of a Ray cluster, by kind."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enginegate.config.settings import flag_of, given, mapping, number
from enginegate.errors import OptionError

if TYPE_CHECKING:
    import pytest

_WHERE = "[tool.enginegate.fleet]"
_KEYS = {"shards", "kinds"}
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")  # part of file names
# What a shard would leave on its machine, or what the driver gives each shard itself.
_NEVER = ("shard", "kind", "save_engines", "calibrate", "report_text")


@dataclass(frozen=True)
class FleetOptions:
    """Where the shards of a run are run.

    Attributes:
        address: of a Ray cluster; `auto` for the one that this machine is in.
        shards: of each kind of machine; 0 for as many as there are machines.
        kinds: the Ray resource that the machines of a kind have, by the kind's name; empty where
            all machines are of one kind.
    """

    address: str
    shards: int
    kinds: Mapping[str, str]


def fleet_options(
    config: "pytest.Config", address: str, table: Mapping[str, Any]
) -> FleetOptions | None:
    """Read `[tool.enginegate.fleet]`; None without `--gate-fleet`. Raises OptionError."""
    if unknown := sorted(set(table) - _KEYS):
        raise OptionError(f"{_WHERE} has unknown keys {unknown}: use {sorted(_KEYS)}")
    shards = number(f"{_WHERE} shards", table["shards"], int) if "shards" in table else 0
    kinds = {name: _resource(name, said) for name, said in mapping(table, "kinds").items()}
    if not address:
        return None
    if unfit := [flag_of(name) for name in _NEVER if given(config, name)]:
        raise OptionError(f"{unfit[0]} is for one machine: run it without --gate-fleet")
    return FleetOptions(address, shards, kinds)


def _resource(kind: str, said: Any) -> str:
    if not _KIND.fullmatch(kind):
        raise OptionError(
            f"{_WHERE} kinds: {ascii(kind)[:60]} is no name of a kind: use up to 40 letters, "
            "digits, `.`, `_` and `-`"
        )
    if not isinstance(said, str) or not said:
        raise OptionError(
            f'{_WHERE} kinds: {kind} is not the name of a Ray resource: write {kind} = "NAME", and '
            'start its machines with `ray start --resources=\'{"enginegate": 1, "NAME": 1}\'`'
        )
    return said
