"""Curves of training: a metric over the steps."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from moslora.report.canvas import Canvas, Style
from moslora.report.runs import ReportedRun
from moslora.runs.intervals import wilson

CURVES = {
    "validation_loss": "Validation loss",
    "loss": "Training loss",
    "validation_accuracy": "Accuracy on validation questions",
    "grad_norm": "Gradient norm",
}
"""Metric -> title of its figure."""

WINDOWS = 50
"""Number of windows of the running mean along a curve."""

MARKS = 12
"""Minimum number of marks along a curve, unless it has fewer points."""


def curve(canvas: Canvas, runs: Sequence[ReportedRun], metric: str, title: str) -> Markup | None:
    """Draw a metric over the steps, a line per run; ``None`` if no run has it.

    A ring marks the step that a run chose by this metric. Accuracies have 95 % intervals.
    """
    below = "step"
    legend = {}
    with canvas.figure(4.8, 2.5) as (figure, axes):
        for run in runs:
            steps, values = run.curve(metric)
            if not values:  # a run without validation rows has no such loss
                continue
            style = canvas.style(run.arm)
            legend[fill(run.arm, 36)] = _draw(axes, steps, values, style)
            if metric == "validation_accuracy":
                _shade(axes, run, style)
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            best = run.run.best
            if best is not None and metric == f"validation_{best.by}":
                axes.plot(best.step, best.value, "o", markersize=9, fillstyle="none", color=style.color)
                below = "step (ring: the result)"
        axes.set(title=title, xlabel=below)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        if len(canvas.arms) > 1:
            axes.legend(legend.values(), legend.keys())
    if not legend:
        return None
    return canvas.keep(f"training-{metric.replace('_', '-')}", figure)


def _shade(axes: Axes, run: ReportedRun, style: Style) -> None:
    """Draw Wilson's intervals of a run's accuracies, with the effective number of questions if there are clusters."""
    rows = [row for row in run.metrics if row.get("validation_accuracy") is not None]
    intervals = []
    for row in rows:
        count = row.get("validation_effective_questions", row["validation_questions"])
        intervals.append(wilson(row["validation_accuracy"], count))
    steps = [row["step"] for row in rows]
    axes.fill_between(steps, *np.transpose(intervals), color=style.color, alpha=0.15, linewidth=0)


def _draw(axes: Axes, steps: Sequence[int], values: Sequence[float], style: Style) -> Any:
    """Draw the running mean of a run's points, and faint the points; return the line."""
    width = max(1, len(values) // WINDOWS)
    axes.plot(steps, values, linewidth=0.6, alpha=0.3, color=style.color)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    return axes.plot(
        steps[width - 1 :],
        smooth,
        linewidth=1.6,
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        markevery=max(1, len(smooth) // MARKS),
        markersize=3.5,
    )[0]
