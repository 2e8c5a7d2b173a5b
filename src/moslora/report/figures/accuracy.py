"""Accuracies of arms and bases, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from moslora.compare.statistics import MACRO, Floats
from moslora.evaluation import Results, Score
from moslora.report.canvas import MARKERS, MUTED, Canvas, label_once, legend_above
from moslora.report.figures.layout import height, offsets, row_names, set_rows
from moslora.report.runs import ReportedRun

Scores = dict[str, tuple[Score, str]]
"""By task, and on average: the score, and which of its metrics counts."""


@dataclass(frozen=True)
class Series:
    """The marks of an arm, by the scores of its seeds; or of a base, which has one."""

    name: str
    scores: Sequence[Scores]
    color: str
    marker: str
    is_base: bool = False

    def of(self, name: str) -> list[tuple[Score, str]]:
        """The scores of one task, or on average, of the seeds that have it."""
        return [scores[name] for scores in self.scores if name in scores]


@dataclass(frozen=True)
class Mark:
    """An arm's accuracy in a row, in percent."""

    mean: float  # over the seeds
    errors: Floats  # to both sides, shape ``(2, 1)``: a standard error over the seeds, or the interval of a single one
    of_seeds: Floats  # empty for a single seed


def accuracy(canvas: Canvas, runs: Sequence[ReportedRun], *, averaged: bool) -> Markup | None:
    """Per task, and if ``averaged`` on average: every arm with its interval, its base, and the majority class."""
    series = [*_of_bases(runs), *_of_arms(canvas, runs)]
    if all(one.is_base for one in series):
        return None
    known: Scores = {}
    for one in series:
        for scores in one.scores:
            known |= scores
    names = row_names([name for name in known if name != MACRO], averaged=averaged)
    with canvas.figure(5, height(len(names), len(series))) as (figure, axes):
        for row, name in enumerate(names):
            score, _ = known[name]
            if score.majority_class is not None:
                _draw_majority_class(axes, row, 100 * score.majority_class)
            for one, offset in zip(series, offsets(len(series)), strict=True):
                _draw(axes, one, _mark(one.of(name)), row + offset)
        set_rows(axes, names, _label(series))
        legend_above(axes)
    return canvas.keep("accuracy", figure)


def _draw_majority_class(axes: Axes, row: int, level: float) -> None:
    label = label_once(axes, "majority class")
    ends = [row - 0.38, row + 0.38]
    axes.plot([level] * 2, ends, color=MUTED, linewidth=1.4, linestyle=(0, (2, 1.3)), label=label)


def _draw(axes: Axes, series: Series, mark: Mark, place: float) -> None:
    """One arm's mark, hollow for a base, with its error, and a point for each of several seeds."""
    filled_with = series.color
    if series.is_base:
        filled_with = "none"
    places = [place] * len(mark.of_seeds)
    axes.scatter(mark.of_seeds, places, s=10, color=series.color, alpha=0.35, linewidths=0)
    axes.errorbar(
        mark.mean,
        place,
        xerr=mark.errors,
        label=label_once(axes, series.name),
        fmt=series.marker,
        markersize=5,
        elinewidth=1.5,
        color=series.color,
        markerfacecolor=filled_with,
    )


def _label(series: Sequence[Series]) -> str:
    """The metric, and what the intervals are."""
    metrics = set()
    for one in series:
        for scores in one.scores:
            metrics |= {metric for _, metric in scores.values()}
    title = "accuracy, by the metric of each protocol"
    if len(metrics) == 1:
        title = metrics.pop().replace("_", " ")
    label = f"{title}, percent, 95 % interval"
    if any(len(one.scores) > 1 for one in series):
        label += "; of several seeds ± one standard error over seeds"
    return label


def _of_bases(runs: Sequence[ReportedRun]) -> list[Series]:
    """Each base once, with the score of every task in the first of its runs that has it."""
    found: dict[str, Scores] = {}
    for run in runs:
        if run.base_results:
            of_earlier_runs = found.get(run.base_name, {})
            found[run.base_name] = {**_scores(run.base_results), **of_earlier_runs}
    markers = cycle(MARKERS)
    return [Series(name, [scores], MUTED, next(markers), is_base=True) for name, scores in found.items() if scores]


def _of_arms(canvas: Canvas, runs: Sequence[ReportedRun]) -> list[Series]:
    """The arms that have scores."""
    found = []
    for arm in canvas.arms:
        evaluated = [run.tuned_results for run in runs if run.arm == arm]
        scores = [_scores(results) for results in evaluated if results and results.macro]
        if scores:
            style = canvas.style(arm)
            found.append(Series(arm, scores, style.color, style.marker))
    return found


def _scores(results: Results) -> Scores:
    """Empty where no task is finished."""
    if not results.macro:
        return {}
    scores = {**results.tasks, MACRO: results.macro}
    return {name: (score, results.metric) for name, score in scores.items()}


def _mark(scores: Sequence[tuple[Score, str]]) -> Mark:
    """The mark for the scores of an arm's seeds; NaN without any."""
    found = [score.value(metric) for score, metric in scores]
    values = 100 * np.array([value for value, _ in found])
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
        return Mark(float(values.mean()), np.full((2, 1), error), values)
    no_seeds = values[:0]
    if not found:
        return Mark(np.nan, np.full((2, 1), np.nan), no_seeds)
    _, interval = found[0]
    ends = 100 * np.array(interval or (np.nan, np.nan))
    mean = float(values[0])
    return Mark(mean, np.abs(ends - mean)[:, None], no_seeds)
