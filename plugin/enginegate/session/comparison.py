"""What a variant is compared with."""

from enginegate.baselines import Baseline
from enginegate.serving import Load


def compared_levels(load: Load, known: Baseline | None) -> tuple[int, ...]:
    """The levels to compare: those of the baseline, or the lowest and where it is saturated.

    Those that are marked are left out where there are others.
    """
    if known is not None:
        return tuple(sorted(known.cells))
    trusted = [level.concurrency for level in load.levels if not level.marks]
    swept = trusted or [level.concurrency for level in load.levels]
    saturated = load.analysis.saturated_from
    return tuple(sorted({swept[0], saturated if saturated in swept else swept[-1]}))
