"""The figures of training and of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from moslora.compare.contrast import Contrast
from moslora.compare.statistics import MACRO, Floats
from moslora.evaluation import Results, Score
from moslora.report.canvas import GRID, INK, MARKERS, MUTED, Canvas, in_steps, legend_above, new_label
from moslora.report.runs import ReportedRun
from moslora.runs.evaluation import Evaluation


def curve(canvas: Canvas, runs: Sequence[ReportedRun], metric: str, title: str) -> Markup | None:
    """One metric over the steps, a line per run; ``None`` if no run has it. 100 points or more are drawn faint, under
    their running mean over a thirtieth of them."""
    if not any(run.curve(metric)[0] for run in runs):
        return None
    with canvas.figure(4.8, 2.5) as (figure, axes):
        for run in runs:
            steps, values = run.curve(metric)
            if not values:  # as of a run without validation rows
                continue
            (color, marker, line), label = canvas.style(run.arm), new_label(axes, run.arm)
            width = len(values) // 30 if len(values) >= 100 else 1
            if width > 1:
                axes.plot(steps, values, linewidth=0.6, alpha=0.3, color=color)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            style = {"linestyle": line, "marker": marker if len(values) <= 12 else "", "markersize": 3.5}
            axes.plot(steps[width - 1 :], smooth, linewidth=1.6, color=color, label=label, **style)
        in_steps(axes, title, "step")
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if metric in ("learning_rate", "tokens_per_second", "grad_norm"):
            axes.set_ylim(bottom=0)
        if len(canvas.arms) > 1:
            axes.legend()
    return canvas.keep(f"training-{metric.replace('_', '-')}", figure)


def accuracy(canvas: Canvas, runs: Sequence[ReportedRun], *, averaged: bool) -> Markup | None:
    """Per task, and if ``averaged`` on average: every arm with its interval, its base, and the majority class."""
    series = [*_of_bases(runs), *_of_arms(canvas, runs)]
    if all(one.is_base for one in series):
        return None
    known = {name: score for one in series for scores in one.scores for name, score in scores.items()}
    names = _names([name for name in known if name != MACRO], averaged=averaged)
    with canvas.figure(5, _height(len(names), len(series))) as (figure, axes):
        for row, name in enumerate(names):
            level, ends = 100 * known[name][0].majority_class, [row - 0.38, row + 0.38]
            label = new_label(axes, "majority class")
            axes.plot([level] * 2, ends, color=MUTED, linewidth=1.4, linestyle=(0, (2, 1.3)), label=label)
            for one, place in zip(series, row + _places(len(series)), strict=True):
                mean, errors, values = _mean([scores[name] for scores in one.scores if name in scores])
                axes.scatter(values, [place] * len(values), s=10, color=one.color, alpha=0.35, linewidths=0)
                style = {"fmt": one.marker, "markersize": 5, "elinewidth": 1.5, "color": one.color}
                style["markerfacecolor"] = "none" if one.is_base else one.color
                axes.errorbar(mean, place, xerr=errors, label=new_label(axes, one.name), **style)
        error = "; of several seeds ± one standard error" if any(len(one.scores) > 1 for one in series) else ""
        metrics = {metric for one in series for scores in one.scores for _, metric in scores.values()}
        metric = metrics.pop().replace("_", " ") if len(metrics) == 1 else "accuracy, by the metric of each protocol"
        _rows(axes, names, f"{metric}, percent, 95 % interval{error}")
    return canvas.keep("accuracy", figure)


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


def _of_bases(runs: Sequence[ReportedRun]) -> list[Series]:
    """Each base once, of every task the score in the first of its runs that has it."""
    found: dict[str, Scores] = {}
    for run in runs:
        if run.base_results:
            found[run.base_name] = {**_scores(run.base_results), **found.get(run.base_name, {})}
    markers = cycle(MARKERS)
    return [Series(name, [scores], MUTED, next(markers), is_base=True) for name, scores in found.items() if scores]


def _of_arms(canvas: Canvas, runs: Sequence[ReportedRun]) -> list[Series]:
    """The arms that have scores."""
    found = []
    for arm in canvas.arms:
        evaluated = [_scores(run.tuned_results) for run in runs if run.tuned_results and run.arm == arm]
        if scores := [one for one in evaluated if one]:
            color, marker, _ = canvas.style(arm)
            found.append(Series(arm, scores, color, marker))
    return found


def _scores(results: Results) -> Scores:
    scores = {**results.tasks, MACRO: results.macro} if results.macro else {}
    return {name: (score, results.settings.primary) for name, score in scores.items()}


def _names(tasks: Sequence[str], *, averaged: bool = True) -> list[str]:
    return [*tasks, *([MACRO] if averaged and len(tasks) > 1 else [])]


def _mean(scores: Sequence[tuple[Score, str]]) -> tuple[float, Floats, Floats]:
    """In percent: the mean over an arm's seeds, its error to both sides, shape ``(2, 1)``, and each of several seeds.
    The error is one standard error over the seeds; of a single seed it is the interval over the questions."""
    found = [score.value(metric) for score, metric in scores]
    values = 100 * np.array([value for value, _ in found])
    mean = float(values.mean()) if found else np.nan
    if len(values) > 1:
        return mean, np.full((2, 1), values.std(ddof=1) / len(values) ** 0.5), values
    ends = 100 * np.array((found and found[0][1]) or (np.nan, np.nan))
    return mean, np.abs(ends - mean)[:, None], values[:0]


def differences(canvas: Canvas, name: str, contrasts: Sequence[Contrast], how: str) -> Markup:
    """Per task and on average: each contrast, all against one arm, with its 95 % interval; ``how`` says which."""
    unit, names = contrasts[0].unit, _names([*contrasts[0].y])
    with canvas.figure(5, _height(len(names), 1 + len(contrasts))) as (figure, axes):
        axes.axvline(0, color=MUTED, linewidth=1.2)
        for contrast, place in zip(contrasts, _places(len(contrasts)), strict=True):
            color, marker, _ = canvas.style(contrast.after)
            for row, task in enumerate(names):
                effect, label = contrast.effects[task], new_label(axes, contrast.after)
                ends, middle = [unit.factor * end for end in effect.interval], unit.factor * effect.difference
                axes.plot(ends, [row + place] * 2, color=color, linewidth=1.8, solid_capstyle="round")
                style = {"color": color, "markersize": 5, "markerfacecolor": color if effect.shown else "none"}
                axes.plot(middle, row + place, marker, label=label, **style)
        axes.locator_params(axis="x", nbins=5)  # more of them run into each other
        label = f"difference from {contrasts[0].before}, {unit.unit}, {how}; filled: shown"
        _rows(axes, names, label, legend=len(contrasts) > 1)
    return canvas.keep(name, figure)


FORGOTTEN = "nats_per_byte"  # an outcome of texts


def change(outcome: str, tuned: Evaluation, base: Evaluation) -> float:
    """Macro average of the ``outcome`` over the tasks that have it, minus the base's; NaN if none has."""
    both = [(its.outcomes.get(outcome), base.tasks[task].outcomes.get(outcome)) for task, its in tuned.tasks.items()]
    means = [fmean(after) - fmean(before) for after, before in both if after and before]
    return fmean(means) if means else np.nan


def gain_and_forgetting(canvas: Canvas, runs: Sequence[tuple[str, Evaluation]], base: Evaluation) -> Markup | None:
    """How much better than the base each run answers, over how much worse it predicts texts, and the arms' means with
    their standard errors; ``None`` without texts. ``runs``: arm and answers, to the questions of ``base``."""
    both = [(arm, (change(FORGOTTEN, run, base), change("log_probability", run, base))) for arm, run in runs]
    pairs = {arm: np.array([pair for its, pair in both if its == arm]) for arm in canvas.arms}
    found = {arm: points for arm, points in pairs.items() if points.size and np.isfinite(points).all()}
    if not found:
        return None
    with canvas.figure(6, 3.5) as (figure, axes):
        for arm in sorted(found, key=lambda arm: -found[arm][:, 1].mean()):  # the legend in the order of the marks
            x, y = found[arm].T
            style = dict(zip(("color", "marker"), canvas.style(arm), strict=False))
            axes.scatter(x, y, s=16, alpha=0.4, linewidths=0, **style)
            xerr, yerr = found[arm].std(axis=0, ddof=1) / len(x) ** 0.5 if len(x) > 1 else (0, 0)
            label = new_label(axes, arm)
            axes.errorbar(x.mean(), y.mean(), yerr, xerr, linestyle="", markersize=6.5, label=label, **style)
        if len(found) > 1:  # far from the base and close together, they stay apart
            axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        for line in (axes.axhline, axes.axvline):
            line(0, color=MUTED, linewidth=1.2)
        axes.set(xlabel="loss on other texts, nats per byte", ylabel="gain in log p of the right option, nats")
        axes.set_title("Against the base; means ± standard errors")
        axes.locator_params(nbins=5)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return canvas.keep("gain-and-forgetting", figure)


def _places(count: int) -> Floats:
    """Places of this many points around a row."""
    return np.linspace(-0.25, 0.25, count) if count > 1 else np.zeros(1)


def _height(rows: int, points: int) -> float:
    """Inches of a figure with this many points in each row: the same for accuracies and differences."""
    return 1.1 + rows * (0.22 + 0.1 * points)


def _rows(axes: Axes, names: Sequence[str], label: str, *, legend: bool = True) -> None:
    """A row for each name, an average set apart, and a legend above."""
    axes.set_xlabel(label, wrap=True)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    if names[-1] == MACRO:
        axes.axhline(len(names) - 1.5, color=GRID, linewidth=1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    if legend:
        legend_above(axes)
