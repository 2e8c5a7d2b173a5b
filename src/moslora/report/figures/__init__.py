"""Figures of each section of the page. A new one is a function in this folder, and a line in its section here.

A figure is drawn on a canvas, which saves it as PNG, and returned as SVG; ``None`` if there is nothing to show.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from markupsafe import Markup

from moslora.report.canvas import Canvas
from moslora.report.comparisons import ShownComparison
from moslora.report.figures.confusion import confusion_matrix
from moslora.report.figures.curves import CURVES, curve
from moslora.report.figures.differences import differences
from moslora.report.figures.forgetting import gain_and_forgetting
from moslora.report.figures.mixers import draw_mixers, mapped
from moslora.report.figures.strength import strengths
from moslora.report.runs import ReportedRun
from moslora.runs.confusion import confusion, shared_options
from moslora.strength.curve import read_curve


def of_answers(
    canvas: Canvas, runs: Sequence[ReportedRun], bases: Sequence[ShownComparison], each_other: Sequence[ShownComparison]
) -> list[Markup]:
    """Return the figures of answers: differences by task, gain against forgetting, and confusion matrices.

    Differences are from the bases, or without bases between the arms. Gain against forgetting needs a single base.

    Args:
        canvas: canvas of the report.
        runs: runs of the report.
        bases: comparisons with the bases.
        each_other: comparison of the arms.
    """
    figures: list[Markup] = []
    for comparison in bases or each_other:
        for _, contrasts in groupby(comparison.contrasts, key=lambda contrast: contrast.before):
            figures.append(differences(canvas, f"differences-{len(figures) + 1}", list(contrasts)))
    if len(bases) == 1 and bases[0].contrasts:
        base = next(run.base for run in runs if run.base)
        tuned = [(run.arm, run.tuned.evaluation) for run in runs if run.tuned and run.base]
        forgotten = gain_and_forgetting(canvas, tuned, base)
        if forgotten is not None:
            figures.append(forgotten)
    for run in runs:
        figures += _confusions(canvas, run)
    return figures


def _confusions(canvas: Canvas, run: ReportedRun) -> Iterator[Markup]:
    """Yield the confusion matrix of each answered task that the recipe declares and whose questions all have the same
    options."""
    for task in run.run.recipe.own_tasks.values():
        options = shared_options(task)
        if run.compared and options and task.name in run.compared.tasks:
            matrix = confusion(run.compared.tasks[task.name], options=len(options))
            name = f"confusion-{run.name.replace('/', '-')}-{task.name}"
            yield confusion_matrix(canvas, name, f"{task.name}, {run.name}", matrix, options)


def of_training(canvas: Canvas, runs: Sequence[ReportedRun]) -> list[Markup]:
    """Return a curve for each metric, the most important first."""
    figures = [curve(canvas, runs, metric, title) for metric, title in CURVES.items()]
    return [figure for figure in figures if figure is not None]


def of_strengths(canvas: Canvas, runs: Sequence[ReportedRun]) -> list[Markup]:
    """Return a figure for each run with a strength curve, measured by `moslora strength`."""
    curves = [(run, read_curve(run.run)) for run in runs if run.run.finished]
    return [strengths(canvas, run, curve) for run, curve in curves if curve is not None]


def of_mixers(canvas: Canvas, runs: Sequence[ReportedRun]) -> dict[str, Markup]:
    """Return arm -> figure of the mixers of its first run, without arms that have nothing to show."""
    mixers = {}
    for arm in canvas.arms:
        run = next(run for run in runs if run.arm == arm)
        layers = mapped(run.learned)
        if layers:
            mixers[arm] = draw_mixers(canvas, f"mixer-{run.name.replace('/', '-')}", layers)
    return mixers
