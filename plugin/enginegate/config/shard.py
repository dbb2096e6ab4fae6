"""A part of a fleet's run: which one, of how many, on how many kinds of machines."""

import re
from dataclasses import dataclass

from enginegate.config.settings import Option, Settings, text
from enginegate.errors import OptionError

_WRITTEN = re.compile(r"([1-9]\d*)/([1-9]\d*)(?:x([1-9]\d*))?")


@dataclass(frozen=True)
class Shard:
    """One of the parts that the variants of a run are split into.

    Attributes:
        number: of this part, from 1.
        count: parts.
        kinds: kinds of machines, each of which runs all parts.
    """

    number: int
    count: int
    kinds: int = 1

    @property
    def share(self) -> float:
        """Its share of the alarm error of the fleet."""
        return 1 / (self.count * self.kinds)


def shard(get: Settings, option: Option) -> Shard | None:
    """`2/6`, or `2/6x3` on each of three kinds of machines. Raises OptionError."""
    said = text(get, option).strip()
    if not said:
        return None
    found = _WRITTEN.fullmatch(said)
    number, count, kinds = (int(part or 1) for part in found.groups()) if found else (0, 0, 0)
    if not 0 < number <= count:
        raise OptionError(
            f"{option.flag} {said!r} is no part of a whole: write 2/6 for the second of six parts, "
            "or 2/6x3 for that on each of three kinds of machines"
        )
    return Shard(number, count, kinds)
