"""Gain and forgetting of a run at each strength of its adapter."""

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from moslora.report.canvas import MUTED, Canvas, Style
from moslora.report.runs import ReportedRun
from moslora.strength.curve import BASE, STRENGTHS, Curve, Measure


def strengths(canvas: Canvas, run: ReportedRun, curve: Curve) -> Markup:
    """Draw a panel for each measure: its change from the base over the strength, with intervals.

    A dashed line is the recommended strength.
    """
    measures = (curve.loss, *curve.others)
    with canvas.figure(2.5 * len(measures) + 0.4, 2.4, columns=len(measures)) as (figure, axes):
        for place, measure in zip(np.atleast_1d(axes).flat, measures, strict=True):
            _draw(place, measure, canvas.style(run.arm))
            if curve.recommended is not None:
                place.axvline(curve.recommended, color=MUTED, linewidth=1, linestyle="--")
        recommended = "" if curve.recommended is None else f"; dashed: recommended, {curve.recommended:g}"
        figure.suptitle(
            f"{run.name} at each strength, change from the base{recommended}", fontsize=10, x=0.01, ha="left"
        )
    return canvas.keep(f"strength-{run.name.replace('/', '-')}", figure)


def _draw(axes: Axes, measure: Measure, style: Style) -> None:
    """Draw the panel of a measure."""
    changes = [measure.change(place) for place in range(len(STRENGTHS))]
    axes.plot(STRENGTHS, [change for change, _ in changes], color=style.color, marker=style.marker, markersize=3.5)
    ends = np.transpose([interval for _, interval in changes])
    axes.fill_between(STRENGTHS, *ends, color=style.color, alpha=0.15, linewidth=0)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.set(title=measure.title, xlabel="strength")
    axes.set_xticks([STRENGTHS[BASE], 0.5, 1.0])
