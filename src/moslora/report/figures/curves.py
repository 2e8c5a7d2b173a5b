"""The course of training: a metric over the steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from moslora.evaluation.intervals import wilson
from moslora.report.canvas import Canvas, Style, label_axes, label_once
from moslora.report.runs import ReportedRun

CURVES = {
    "validation_loss": "Validation loss",
    "loss": "Training loss",
    "validation_accuracy": "Accuracy on validation questions",
    "grad_norm": "Gradient norm",
}
"""Metric -> title of its figure."""

SMOOTHED_FROM = 100
"""A curve of so many points or more is drawn faint, below its running mean."""

WINDOWS = 30
"""The running mean is taken over one in so many of a curve's points."""

RING: Any = {"marker": "o", "markersize": 9, "fillstyle": "none"}
"""How the step that is a run's result is marked."""

MARKED_UP_TO = 12
"""In a curve of at most so many points, each is marked."""


def curve(canvas: Canvas, runs: Sequence[ReportedRun], metric: str, title: str) -> Markup | None:
    """One metric over the steps, a line per run; ``None`` if no run has it. In what was validated a ring marks the step
    that a run chose by it; around an accuracy are 95 % intervals."""
    having = [run for run in runs if run.curve(metric)[1]]  # a run without validation rows has no such loss
    if not having:
        return None
    below = "step"
    with canvas.figure(4.8, 2.5) as (figure, axes):
        for run in having:
            steps, values = run.curve(metric)
            style = canvas.style(run.arm)
            _draw(axes, steps, values, style, label=label_once(axes, run.arm))
            if metric == "validation_accuracy":
                _shade(axes, run, style)
            if run.best is not None and metric == f"validation_{run.best.by}":
                axes.plot(run.best.step, run.best.value, **RING, color=style.color)
                below = "step (ring: the result)"
        label_axes(axes, title, below)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if metric == "validation_accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if metric == "grad_norm":
            axes.set_ylim(bottom=0)
        if len(canvas.arms) > 1:
            axes.legend()
    return canvas.keep(f"training-{metric.replace('_', '-')}", figure)


def _shade(axes: Axes, run: ReportedRun, style: Style) -> None:
    """Wilson's intervals of a run's accuracies, of the effective number of questions where some are in a cluster."""
    steps = []
    below = []
    above = []
    for row in run.metrics:
        accuracy = row.get("validation_accuracy")
        if accuracy is None:
            continue
        count = row.get("validation_effective_questions", row["validation_questions"])
        low, high = wilson(accuracy, count)
        steps.append(row["step"])
        below.append(low)
        above.append(high)
    axes.fill_between(steps, below, above, color=style.color, alpha=0.15, linewidth=0)


def _draw(axes: Axes, steps: Sequence[int], values: Sequence[float], style: Style, *, label: str | None) -> None:
    """One run's line, under its running mean if it has many points."""
    width = 1
    if len(values) >= SMOOTHED_FROM:
        width = len(values) // WINDOWS
        axes.plot(steps, values, linewidth=0.6, alpha=0.3, color=style.color)
    marker = ""
    if len(values) <= MARKED_UP_TO:
        marker = style.marker
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(
        steps[width - 1 :],
        smooth,
        linewidth=1.6,
        color=style.color,
        label=label,
        linestyle=style.line,
        marker=marker,
        markersize=3.5,
    )
