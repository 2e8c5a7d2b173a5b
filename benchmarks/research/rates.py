"""Gain against forgetting beside the best learning rate: each model's tables in docs/results-runs.md, and the figure.

    python -m benchmarks.research.rates                        # of docs/experiments
    python -m benchmarks.research.rates packed --print-only    # moslora experiment FILE --pack packed/NAME wrote each

An arm whose name is another's with one of `ENDINGS` is that method at a rate beside its best. The base is asked before
the runs are packed: ``moslora eval FOLDER/runs/RUN --base``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.research.results import ScoredExperiment, load
from benchmarks.svg import canvas_of, from_report, write_pictures
from benchmarks.tables import markdown, publish
from moslora.compare.arms import Arm
from moslora.compare.comparison import compare_arms
from moslora.compare.distribution import Floats
from moslora.compare.statistics import Effect
from moslora.experiment.tables import mean_in_words
from moslora.report.canvas import Canvas, Style
from moslora.report.figures.forgetting import FORGOTTEN, GAINED, change, draw_base
from moslora.runs.intervals import mean_of
from moslora.runs.outcomes import OUTCOMES, Outcome
from moslora.runs.scores import MACRO

FOLDER = DOCS / "experiments"

MODELS = {"SmolLM2-135M": "article-second", "Qwen2.5-Coder-0.5B": "second-model"}
"""Model -> the experiment with it."""

ENDINGS = ("-far-too-high", "-half", "-low", "-high")
"""Of an arm at a rate beside its method's best; one that ends in another stands before it."""

BESIDE = (GAINED, "log_probability_summed", "validation_loss", FORGOTTEN)
"""The outcomes of the table of differences."""

BLOWN_UP = 0.2
"""A run has blown up whose held-out loss ends this far above its lowest, in nats per token."""


def method_of(arm: str) -> str:
    for ending in ENDINGS:
        arm = arm.removesuffix(ending)
    return arm


@dataclass(frozen=True)
class AtRate:
    """A method at one learning rate.

    Attributes:
        is_best: whether it is the method's best.
        gained: log p of the right option above the base's, of each run.
        forgotten: nats per byte above the base's, of each run.
        held_out: the validation loss of each run.
    """

    is_best: bool
    rate: float
    gained: Floats
    forgotten: Floats
    held_out: Floats


def by_method(found: ScoredExperiment) -> dict[str, list[AtRate]]:
    """Method -> what it gains and forgets, rate by rate."""
    base = found.known_base
    methods: dict[str, list[AtRate]] = {}
    for arm, runs in found.asked_as_base(base).items():
        one = AtRate(
            is_best=arm == method_of(arm),
            rate=found.row(arm).rate or 0.0,
            gained=np.array([change(GAINED, run.evaluation, base) for run in runs]),
            forgotten=np.array([change(FORGOTTEN, run.evaluation, base) for run in runs]),
            held_out=np.array([run.validation_loss for run in runs], dtype=float),
        )
        methods.setdefault(method_of(arm), []).append(one)
    for rates in methods.values():
        rates.sort(key=lambda one: one.rate)
    return methods


def rates_table(methods: Mapping[str, Sequence[AtRate]]) -> str:
    """A row for each method and rate."""
    rows = [["", "learning rate", "seeds", "log p gained", "nats per byte lost"]]
    for method, rates in methods.items():
        for one in rates:
            rate = f"**{one.rate:g}**" if one.is_best else f"{one.rate:g}"
            gained = mean_in_words(one.gained.tolist(), digits=OUTCOMES[GAINED].fine)
            forgotten = mean_in_words(one.forgotten.tolist(), digits=OUTCOMES[FORGOTTEN].fine)
            means = [words.replace("-", "−") for words in (gained, forgotten)]
            rows.append([method, rate, str(len(one.gained)), *means])
    return markdown(rows)


def beside_table(found: ScoredExperiment) -> str:
    """The difference of each arm from the first, outcome by outcome, with the interval of each comparison alone; of an
    arm with runs that have blown up without these, too, where two are left."""
    first, *others = found.arms
    outcomes = [outcome for outcome in BESIDE if OUTCOMES[outcome].of_runs or found.tasks(outcome)]
    rows = [["", "learning rate", *(OUTCOMES[outcome].title for outcome in outcomes)]]
    methods = [method_of(name) for name in found.names]
    for arm in sorted(others, key=lambda arm: (methods.index(method_of(arm.name)), found.row(arm.name).rate)):
        rate = f"{found.row(arm.name).rate:g}"
        rows.append([method_of(arm.name), rate, *_differences(found, first, arm, outcomes)])
        left = {seed: run for seed, run in arm.runs.items() if seed not in blown_up(found, arm.name)}
        if 1 < len(left) < len(arm.runs):
            without = replace(arm, runs=left)
            rows.append(["… without what blew up", rate, *_differences(found, first, without, outcomes)])
    return markdown(rows)


def blown_up(found: ScoredExperiment, arm: str) -> set[int | None]:
    """The seeds of the arm's runs that have blown up."""
    seeds = set()
    for row in found.rows:
        above = (row.validation_loss or 0.0) - (row.lowest_loss or math.inf)
        if row.arm == arm and above > BLOWN_UP:
            seeds.add(row.seed)
    return seeds


def _differences(found: ScoredExperiment, first: Arm, arm: Arm, outcomes: Sequence[str]) -> list[str]:
    """A cell for each outcome; bold where the interval is without zero."""
    cells = []
    for outcome in outcomes:
        tasks = None if OUTCOMES[outcome].of_runs else found.tasks(outcome)
        effect = effect_of(first, arm, outcome, tasks)
        low, high = effect.interval
        cells.append(difference_cell(effect, OUTCOMES[outcome], bold=low > 0 or high < 0))
    return cells


def effect_of(first: Arm, arm: Arm, outcome: str, tasks: str | None) -> Effect:
    """The macro average of an arm's differences from the first over some tasks; ``None`` for an outcome of runs."""
    (contrast,) = compare_arms([first, arm], outcome=outcome, tasks=tasks).named
    return contrast.effects[MACRO]


def difference_cell(effect: Effect, outcome: Outcome, *, bold: bool) -> str:
    """A difference with the interval of its comparison alone."""
    low, high = (outcome.factor * end for end in effect.interval)
    digits = outcome.fine
    difference = f"{outcome.factor * effect.difference:+.{digits}f}"
    if bold:
        difference = f"**{difference}**"
    return f"{difference} ({low:.{digits}f} to {high:.{digits}f})".replace("-", "−")


def made_of(found: ScoredExperiment) -> str:
    """Seeds, questions and machines of the runs."""
    seeds = " or ".join(str(number) for number in sorted({len(arm.runs) for arm in found.arms}))
    tasks = found.tasks(GAINED).split(",")
    questions = sum(len(found.first_run.tasks[task].ids) for task in tasks)
    conditions = found.first_run.evaluation.conditions
    torch = conditions.versions.get("torch") if conditions else None
    devices = dict.fromkeys(row.device for row in found.rows if row.device is not None)
    where = "; ".join(f"{device}, torch {torch}" for device in devices) or "Machine not recorded"
    asked = f"on the same {questions:,} questions of {len(tasks)} sets"
    return f"Means over {seeds} seeds ± standard error over seeds, {asked}. {where}."


def figure(canvas: Canvas, models: Mapping[str, Mapping[str, Sequence[AtRate]]]) -> Markup:
    """A row of panels for each model, and in it a line for each method, from its lowest to its highest rate at which
    anything is gained; the marks grow with the rate. Gain and held-out loss over what is forgotten."""
    with canvas.figure(8.4, 0.4 + 3.4 * len(models), columns=2, rows=len(models)) as (drawn, rows):
        for (model, methods), (by_gain, by_loss) in zip(models.items(), rows, strict=True):
            for method, tried in methods.items():
                rates = [one for one in tried if one.gained.mean() > 0]
                style = canvas.style(method)
                _draw(by_loss, rates, [one.held_out for one in rates], style, label=None)
                _draw(by_gain, rates, [one.gained for one in rates], style, label=method)
            by_gain.set(xlim=by_gain.get_xlim(), ylim=by_gain.get_ylim())  # far from the base, they stay apart
            draw_base(by_gain, "")
            by_gain.set_title(f"{model}: gain over the base")
            by_loss.set(xlabel=by_gain.get_xlabel(), ylabel="nats per token", title="Held-out loss: lower is better")
            by_loss.locator_params(nbins=5)
        share_legend(drawn, [by_gain for by_gain, _ in rows])
        drawn.set_layout_engine("constrained", w_pad=0.12)
    return canvas.keep("rates", drawn)


def share_legend(figure: Figure, panels: Iterable[Any], *, most: int = 8) -> None:
    """Put one legend of at most ``most`` columns below the panels, in place of a legend in each."""
    handles: dict[str, Any] = {}
    for panel in panels:
        of_arms, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, of_arms, strict=True))
        panel.get_legend().remove()
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(most, len(handles)))


def draw_mean(axes: Axes, x: Floats, y: Floats, style: Style, **marks: Any) -> None:
    """Draw the mean over seeds with its standard errors; x and y have a number for each seed."""
    axes.errorbar(
        x.mean(),
        y.mean(),
        yerr=mean_of(y.tolist()).error or 0.0,
        xerr=mean_of(x.tolist()).error or 0.0,
        color=style.color,
        marker=style.marker,
        linestyle="",
        elinewidth=1,
        **marks,
    )


def _draw(axes: Axes, rates: Sequence[AtRate], values: Sequence[Floats], style: Style, *, label: str | None) -> None:
    """Means of these values with their standard errors over the seeds; the best rate's mark is filled."""
    x = [one.forgotten.mean() for one in rates]
    y = [of_runs.mean() for of_runs in values]
    axes.plot(x, y, color=style.color, linewidth=1.2, alpha=0.6)
    for place, one in enumerate(rates):
        draw_mean(
            axes,
            one.forgotten,
            values[place],
            style,
            markersize=4.5 + 2 * place,
            markerfacecolor=style.color if one.is_best else "none",
            label=label if one.is_best else None,
        )


def load_models(folder: Path = FOLDER) -> dict[str, ScoredExperiment]:
    """Model -> its experiment in ``folder``."""
    return {model: load(folder / experiment) for model, experiment in MODELS.items()}


def pictures(found: Mapping[str, ScoredExperiment]) -> dict[str, str]:
    """Path in docs/ -> SVG; of models."""
    models = {model: by_method(its) for model, its in found.items()}
    with canvas_of(dict.fromkeys(chain(*models.values()))) as canvas:
        return {"rates.svg": from_report(figure(canvas, models))}


def main(folder: Path = FOLDER, *, print_only: bool = False) -> None:
    models = load_models(folder)
    for model, found in models.items():
        said = {"rates": f"{rates_table(by_method(found))}\n\n{made_of(found)}", "beside": beside_table(found)}
        for name, text in said.items():
            publish(text, DOCS / "results-runs.md", f"{name} of {MODELS[model]}", print_only=print_only)
    if not print_only:
        write_pictures(pictures(models))


if __name__ == "__main__":
    command(main)
