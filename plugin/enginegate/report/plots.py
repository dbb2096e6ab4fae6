"""Figures. matplotlib is imported here only."""

import math
from collections.abc import Sequence
from pathlib import Path

from enginegate.baselines import Series, change_points
from enginegate.errors import BaselineError
from enginegate.report.outlets import for_page


def plot_history(series: Sequence[Series], path: Path) -> None:
    """Draw time relative to the reference over the runs, with its change points."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise BaselineError(
            "plots need matplotlib: pip install 'pytest-enginegate[history]'"
        ) from error
    figure = Figure(figsize=(9, 2.2 * len(series)), layout="constrained")
    for axes, found in zip(figure.subplots(len(series), squeeze=False)[:, 0], series, strict=True):
        values = [math.exp(note.log_ratio) for note in found.notes]
        axes.plot(values, marker=".", color="#1f5fa8")
        for index in change_points([note.log_ratio for note in found.notes]):
            axes.axvline(index - 0.5, color="#b02020", linestyle="--")
        axes.set_title(for_page(found.title), loc="left", fontsize=9, parse_math=False)
        axes.set_ylabel("time / reference")
        axes.set_xlabel("run")
    figure.savefig(path)
