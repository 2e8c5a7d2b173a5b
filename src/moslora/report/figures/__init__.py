"""The figures of each section of the page. A new one is a function in this folder, and a line in its section here.

A figure is drawn on a canvas, which keeps it as PNG, and is returned as SVG; ``None`` where there is nothing to show.
"""

from collections.abc import Iterable

from markupsafe import Markup

from moslora.report.canvas import Canvas
from moslora.report.comparisons import ShownComparison
from moslora.report.contents import Contents
from moslora.report.figures.accuracy import accuracy
from moslora.report.figures.curves import CURVES, curve
from moslora.report.figures.differences import differences
from moslora.report.figures.forgetting import gain_and_forgetting
from moslora.report.figures.weights import BY_LAYER, by_layer, heat_maps


def of_training(canvas: Canvas, contents: Contents) -> list[Markup]:
    """A curve for each metric."""
    figures = [curve(canvas, contents.runs, metric, title) for metric, title in CURVES.items()]
    return _drawn(figures)


def of_answers(canvas: Canvas, contents: Contents) -> list[Markup]:
    """Accuracies, the differences that matter most, and what was gained against what was forgotten."""
    figures = [accuracy(canvas, contents.runs, averaged=contents.same_questions)]
    for comparison in contents.main_comparisons:
        figures += of_comparison(canvas, comparison)
    if contents.base is not None and contents.asked_alike:
        figures.append(gain_and_forgetting(canvas, contents.answers, contents.base))
    return _drawn(figures)


def of_comparison(canvas: Canvas, comparison: ShownComparison) -> list[Markup]:
    """The differences from each arm that others are held against."""
    figures = []
    for number, contrasts in enumerate(comparison.by_first_arm(), start=1):
        name = comparison.figure
        if number > 1:
            name += f"-{number}"
        figures.append(differences(canvas, name, contrasts, comparison.intervals))
    return figures


def of_weights(canvas: Canvas, contents: Contents) -> list[Markup]:
    """Numbers of every layer, in the first run of each arm."""
    figures = [by_layer(canvas, contents.firsts, *numbers) for numbers in BY_LAYER]
    return _drawn(figures)


def of_mixers(canvas: Canvas, contents: Contents) -> dict[str, Markup]:
    """Arm -> the mixers of its first run."""
    found = {}
    for run in contents.firsts:
        figure = heat_maps(canvas, run)
        if figure is not None:
            found[run.arm] = figure
    return found


def _drawn(figures: Iterable[Markup | None]) -> list[Markup]:
    return [figure for figure in figures if figure is not None]
