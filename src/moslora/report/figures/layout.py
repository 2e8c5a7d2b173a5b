"""The layout of figures with a row for each task."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from moslora.compare.statistics import MACRO, Floats
from moslora.report.canvas import GRID, INK


def row_names(tasks: Sequence[str], *, averaged: bool = True) -> list[str]:
    """The tasks, and after several of them their average, if it is wanted."""
    if averaged and len(tasks) > 1:
        return [*tasks, MACRO]
    return list(tasks)


def height(rows: int, marks: int) -> float:
    """Inches of a figure with this many marks in each row: the same for accuracies and differences."""
    return 1.1 + rows * (0.22 + 0.1 * marks)


def offsets(marks: int) -> Floats:
    """Vertical distances of this many marks from the middle of their row."""
    if marks == 1:
        return np.zeros(1)
    return np.linspace(-0.25, 0.25, marks)


def set_rows(axes: Axes, names: Sequence[str], label: str) -> None:
    """Names the rows, the first on top, sets an average apart, and labels the horizontal axis."""
    axes.set_xlabel(label, wrap=True)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    if names[-1] == MACRO:
        axes.axhline(len(names) - 1.5, color=GRID, linewidth=1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
