"""Gain on questions against forgetting on texts."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from moslora.compare.distribution import Floats
from moslora.compare.gains import gain_of
from moslora.report.canvas import MUTED, Canvas, Style
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES

GAINED = "log_probability"  # an outcome of questions
FORGOTTEN = "nats_per_byte"  # an outcome of texts


def change(outcome: str, tuned: Evaluation, base: Evaluation) -> float:
    """Return the macro average of an outcome over the tasks that have it, minus the base's; NaN without any."""
    gain = gain_of([tuned], base, OUTCOMES[outcome])
    return gain.difference if gain else np.nan


def gain_and_forgetting(canvas: Canvas, runs: Sequence[tuple[str, Evaluation]], base: Evaluation) -> Markup | None:
    """Draw each run's gain on questions over what it forgot of texts, and the arms' means with standard errors.

    Args:
        canvas: canvas of the report.
        runs: pairs of arm and answers to the questions of ``base``.
        base: answers of the base.

    Returns:
        ``None`` without texts.
    """
    points_by_arm = {}
    for arm in canvas.arms:
        of_arm = [run for name, run in runs if name == arm]
        points = np.array([(change(FORGOTTEN, run, base), change(GAINED, run, base)) for run in of_arm])
        if points.size and np.isfinite(points).all():
            points_by_arm[arm] = points
    if not points_by_arm:
        return None
    by_gain = sorted(points_by_arm, key=lambda arm: -points_by_arm[arm][:, 1].mean())
    with canvas.figure(6, 3.5) as (figure, axes):
        for arm in by_gain:  # the legend in the order of the marks
            _draw(axes, points_by_arm[arm], canvas.style(arm), label=fill(arm, 36))
        axes.margins(0.08)
        if len(points_by_arm) > 1:  # without the base at 0, so that close points stay apart
            axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        marks = "one seed each"
        if any(len(points) > 1 for points in points_by_arm.values()):
            marks = "means ± standard errors over seeds"
        draw_base(axes, marks)
    return canvas.keep("gain-and-forgetting", figure)


def draw_base(axes: Axes, title: str) -> None:
    """Draw the base at zero, title, labels and the legend; call it after the marks are drawn."""
    axes.axhline(0, color=MUTED, linewidth=1.2)
    axes.axvline(0, color=MUTED, linewidth=1.2)
    axes.set(xlabel="loss on other texts, nats per byte", ylabel="gain in log p of the right option, nats")
    axes.set_title(f"Against the base; {title}")
    axes.locator_params(nbins=5)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw(axes: Axes, points: Floats, style: Style, *, label: str) -> None:
    """Draw a point per run, shape ``(runs, 2)``, and their mean with its standard errors."""
    x, y = points.T
    axes.scatter(x, y, s=16, alpha=0.4, linewidths=0, color=style.color, marker=style.marker)
    xerr, yerr = points.std(axis=0, ddof=min(1, len(points) - 1)) / len(points) ** 0.5  # 0 of one seed
    axes.errorbar(
        x.mean(),
        y.mean(),
        yerr,
        xerr,
        linestyle="",
        markersize=6.5,
        label=label,
        color=style.color,
        marker=style.marker,
    )
