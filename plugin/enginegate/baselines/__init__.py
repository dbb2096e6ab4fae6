"""What it was."""

from enginegate.baselines.calibration import (
    REPLICATES,
    calibrate_results,
    calibration_lines,
    save_calibration,
)
from enginegate.baselines.history import (
    Note,
    Series,
    append_history,
    change_points,
    describe_history,
    read_history,
)
from enginegate.baselines.inspect import diff_rows, list_rows, prune, show_rows
from enginegate.baselines.missing import lost_truth, unjudged
from enginegate.baselines.refresh import offer, refresh_baselines
from enginegate.baselines.store import Baseline, Baselines
from enginegate.baselines.travel import changed_baselines, take_baselines

__all__ = [
    "REPLICATES", "Baseline", "Baselines", "Note", "Series", "append_history", "calibrate_results",
    "calibration_lines", "change_points", "changed_baselines", "describe_history",
    "diff_rows", "list_rows", "lost_truth", "offer", "prune", "read_history", "refresh_baselines",
    "save_calibration", "show_rows", "take_baselines", "unjudged",
]  # fmt: skip
