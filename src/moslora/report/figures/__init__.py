"""The figures of each section of the page. A new one is a function in this folder, and a line in its section here.

A figure is drawn on a canvas, which keeps it as PNG, and is returned as SVG; ``None`` where there is nothing to show.
"""

from markupsafe import Markup

from moslora.report.canvas import Canvas
from moslora.report.contents import Contents
from moslora.report.figures.curves import CURVES, curve
from moslora.report.figures.differences import differences
from moslora.report.figures.forgetting import gain_and_forgetting
from moslora.report.figures.mixers import draw_mixers, mapped


def of_answers(canvas: Canvas, contents: Contents) -> list[Markup]:
    """The differences from the bases, or else of the arms, by task; and what was gained against what was forgotten."""
    figures: list[Markup] = []
    for comparison in contents.main_comparisons:
        for contrasts in comparison.by_first_arm():
            figures.append(differences(canvas, f"differences-{len(figures) + 1}", contrasts))
    if contents.base is not None:
        answers = [(run.arm, run.tuned) for run in contents.runs if run.tuned and run.base]
        forgotten = gain_and_forgetting(canvas, answers, contents.base)
        if forgotten is not None:
            figures.append(forgotten)
    return figures


def of_training(canvas: Canvas, contents: Contents) -> list[Markup]:
    """A curve for each metric, the most telling first."""
    figures = [curve(canvas, contents.runs, metric, title) for metric, title in CURVES.items()]
    return [figure for figure in figures if figure is not None]


def of_mixers(canvas: Canvas, contents: Contents) -> dict[str, Markup]:
    """Arm -> the mixers of its first run."""
    found = {}
    for run in contents.firsts:
        layers = mapped(run.layers)
        if layers:
            found[run.arm] = draw_mixers(canvas, f"mixer-{run.name.replace('/', '-')}", layers)
    return found
