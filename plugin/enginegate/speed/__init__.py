"""Is it slower?"""

from enginegate.speed.arms import Arm, LocalArm, OpenArm, Turn, local_arm, open_arms
from enginegate.speed.change import TOO_NOISY, describe, is_noise
from enginegate.speed.judge import Comparison, SpeedJudge, paired
from enginegate.speed.records import Measured, Speed, Unchanged
from enginegate.speed.rules import ALARM, FLOOR_S, METRICS, P50, Question, Rules, gating_rules
from enginegate.speed.sequential import SequentialTest, Suspects
from enginegate.speed.stats import (
    FEWEST_REPLICATES,
    POWER,
    Anchor,
    Change,
    Errors,
    anchor_of,
    bounds,
    change_of,
)
from enginegate.speed.timing import (
    CANDIDATE,
    CONTROL,
    METHOD,
    SECOND_CONTROL,
    Compared,
    OpenArms,
    Rig,
    Samples,
)
from enginegate.speed.worker import own_paths, remote_arm

__all__ = [
    "ALARM", "CANDIDATE", "CONTROL", "FEWEST_REPLICATES", "FLOOR_S", "METHOD", "METRICS", "P50",
    "POWER", "SECOND_CONTROL", "TOO_NOISY", "Anchor", "Arm", "Change", "Compared", "Comparison",
    "Errors", "LocalArm", "Measured", "OpenArm", "OpenArms", "Question", "Rig", "Rules", "Samples",
    "SequentialTest", "Speed", "SpeedJudge", "Suspects", "Turn", "Unchanged", "anchor_of",
    "bounds", "change_of", "describe", "gating_rules", "is_noise", "local_arm", "open_arms",
    "own_paths", "paired", "remote_arm",
]  # fmt: skip
