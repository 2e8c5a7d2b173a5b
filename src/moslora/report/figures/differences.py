"""Differences between arms, with intervals."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from markupsafe import Markup

from moslora.compare.contrast import Contrast
from moslora.report.canvas import GRID, INK, MUTED, Canvas
from moslora.runs.scores import MACRO


def differences(canvas: Canvas, name: str, contrasts: Sequence[Contrast]) -> Markup:
    """Draw contrasts with one arm, per task and on average, each with its own 95 % interval."""
    first = contrasts[0]
    rows = list(first.y)
    if len(rows) > 1:
        rows.append(MACRO)
    offsets = np.linspace(-0.25, 0.25, len(contrasts)) * (len(contrasts) > 1)
    height = 0.8 + len(rows) * (0.22 + 0.1 * len(contrasts)) + 0.2 * len(contrasts)
    with canvas.figure(5, height) as (figure, axes):
        axes.axvline(0, color=MUTED, linewidth=1.2)
        for contrast, offset in zip(contrasts, offsets, strict=True):
            color, marker, _ = canvas.style(contrast.after)
            axes.plot([], [], marker, color=color, label=fill(contrast.after, 60))  # for the legend
            for row, task in enumerate(rows):
                effect = contrast.effects[task]
                x, low, high = contrast.outcome.factor * np.array([effect.difference, *effect.interval])
                place = row + offset
                axes.plot([low, high], [place, place], color=color, linewidth=1.8, solid_capstyle="round")
                fill_color = color if effect.is_shown else "none"
                axes.plot(x, place, marker, color=color, markersize=5, markerfacecolor=fill_color)
        axes.set_title("Difference by task")
        axes.locator_params(axis="x", nbins=5)  # more would overlap
        axes.set_xlabel(
            f"difference from {first.before}, {first.outcome.unit}, 95 % interval; filled: shown", wrap=True
        )
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        if rows[-1] == MACRO:
            axes.axhline(len(rows) - 1.5, color=GRID, linewidth=1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        if len(contrasts) > 1:
            figure.legend(loc="outside upper left")
    return canvas.keep(name, figure)
