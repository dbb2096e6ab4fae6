"""Where an engine's time goes, by the element type that it was spent in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Kernel:
    """An operation as it ran.

    Attributes:
        name: of the operation in the engine.
        kind: what it does.
        type: element type it computed in.
        implementation: what computed it, as the runtime calls that.
        share: of the engine's time.
    """

    name: str
    kind: str
    type: str
    implementation: str
    share: float


@dataclass(frozen=True)
class Profile:
    """Where an engine's time goes.

    Attributes:
        kernels: every operation that took time, longest first; their shares add up to 1.
        states: what else decides what is computed, in words: providers, denormals, TF32, AMX.
    """

    kernels: tuple[Kernel, ...]
    states: Mapping[str, str]

    @property
    def time_share(self) -> dict[str, float]:
        """Share of the time by element type, largest first."""
        shares: dict[str, float] = {}
        for kernel in self.kernels:
            shares[kernel.type] = shares.get(kernel.type, 0.0) + kernel.share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def profile_of(taken: Iterable[tuple[Kernel, float]], states: Mapping[str, str]) -> Profile:
    """A profile from kernels and the seconds that each took; one that comes twice counts twice."""
    seconds: dict[Kernel, float] = {}
    for kernel, more in taken:
        seconds[kernel] = seconds.get(kernel, 0.0) + more
    whole = sum(seconds.values())
    kernels = (replace(kernel, share=value / whole) for kernel, value in seconds.items() if value)
    return Profile(tuple(sorted(kernels, key=lambda kernel: -kernel.share)), states)
