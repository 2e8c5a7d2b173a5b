"""Gain against forgetting beside the best learning rate: the tables and the figure of the second edition in
docs/results.md.

    python -m benchmarks.article.rates                                # docs/experiments/article-second
    python -m benchmarks.article.rates packed --print-only            # moslora experiment FILE --pack packed wrote it

An arm NAME-low or NAME-high is the method of the arm NAME at the rate below or above its best. The base is asked before
the runs are packed: ``moslora eval FOLDER/runs/RUN --base``.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from benchmarks import DOCS
from benchmarks.article.results import ScoredExperiment, load, made_of
from benchmarks.svg import from_report, write_pictures
from benchmarks.tables import markdown, publish
from moslora.compare.arms import Arm
from moslora.compare.comparison import compare_arms
from moslora.compare.statistics import MACRO, Floats
from moslora.evaluation.intervals import mean_of
from moslora.experiment.tables import mean_in_words
from moslora.report.canvas import Canvas, Style
from moslora.report.figures.forgetting import FORGOTTEN, GAINED, change, draw_base
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES

FOLDER = DOCS / "experiments" / "article-second"
PAGE = DOCS / "results.md"

LOW = "-low"
HIGH = "-high"

OUTCOMES_NAMED = (GAINED, "accuracy", FORGOTTEN)
"""Of the experiment, each a family of its own."""


BESIDE = (GAINED, "log_probability_summed", "validation_loss", FORGOTTEN)
"""The outcomes of the table of differences."""

BLOWN_UP = 0.2
"""A run has blown up whose held-out loss ends this far above its lowest, in nats per token."""


def method_of(arm: str) -> str:
    return arm.removesuffix(LOW).removesuffix(HIGH)


@dataclass(frozen=True)
class AtRate:
    """A method at one learning rate.

    Attributes:
        arm: its name in the experiment.
        gained: log p of the right option above the base's, of each run.
        forgotten: nats per byte above the base's, of each run.
        held_out: the validation loss of each run.
    """

    arm: str
    rate: float
    gained: Floats
    forgotten: Floats
    held_out: Floats

    @property
    def method(self) -> str:
        return method_of(self.arm)

    @property
    def is_best(self) -> bool:
        return self.arm == self.method


def by_method(found: ScoredExperiment) -> dict[str, list[AtRate]]:
    """Method -> what it gains and forgets, rate by rate.

    Raises:
        SystemExit: the base was asked nothing.
    """
    if found.base is None:
        raise SystemExit("the base's answers are missing; moslora eval RUN --base of one run, and pack again")
    methods: dict[str, list[AtRate]] = {}
    for arm, runs in found.asked_as_base(found.base).items():
        one = AtRate(
            arm=arm,
            rate=found.row(arm).rate or 0.0,
            gained=np.array([change(GAINED, run, found.base) for run in runs]),
            forgotten=np.array([change(FORGOTTEN, run, found.base) for run in runs]),
            held_out=np.array([run.validation_loss for run in runs], dtype=float),
        )
        methods.setdefault(one.method, []).append(one)
    for rates in methods.values():
        rates.sort(key=lambda one: one.rate)
    return methods


def rates_table(methods: Mapping[str, Sequence[AtRate]]) -> str:
    """A row for each method and rate."""
    rows = [["", "learning rate", "seeds", "log p gained", "nats per byte lost"]]
    for method, rates in methods.items():
        for one in rates:
            rate = f"{one.rate:g}"
            if one.is_best:
                rate = f"**{rate}**"
            gained = mean_in_words(one.gained.tolist(), digits=OUTCOMES[GAINED].fine)
            forgotten = mean_in_words(one.forgotten.tolist(), digits=OUTCOMES[FORGOTTEN].fine)
            rows.append([method, rate, str(len(one.gained)), gained, forgotten])
    return markdown(rows)


def beside_table(found: ScoredExperiment) -> str:
    """The difference of each arm from the first, outcome by outcome, with the interval of each comparison alone; of an
    arm with runs that have blown up without these, too."""
    first, *others = found.arms
    outcomes = [outcome for outcome in BESIDE if OUTCOMES[outcome].of_runs or found.tasks(outcome)]
    rows = [["", "learning rate", *(OUTCOMES[outcome].title for outcome in outcomes)]]
    methods = [method_of(name) for name in found.names]
    for arm in sorted(others, key=lambda arm: (methods.index(method_of(arm.name)), found.row(arm.name).rate)):
        rate = f"{found.row(arm.name).rate:g}"
        rows.append([method_of(arm.name), rate, *_differences(found, first, arm, outcomes)])
        left = {seed: run for seed, run in arm.runs.items() if seed not in blown_up(found, arm.name)}
        if len(left) < len(arm.runs):
            without = replace(arm, runs=left)
            rows.append(["… without what blew up", rate, *_differences(found, first, without, outcomes)])
    return markdown(rows)


def blown_up(found: ScoredExperiment, arm: str) -> set[int | None]:
    """The seeds of the arm's runs that have blown up."""
    seeds = set()
    for row in found.rows:
        if row.arm != arm or row.validation_loss is None or row.lowest_loss is None:
            continue
        if row.validation_loss > row.lowest_loss + BLOWN_UP:
            seeds.add(row.seed)
    return seeds


def _differences(found: ScoredExperiment, first: Arm, arm: Arm, outcomes: Sequence[str]) -> list[str]:
    """A cell for each outcome; bold where the interval is without zero."""
    cells = []
    for outcome in outcomes:
        tasks = None
        if not OUTCOMES[outcome].of_runs:
            tasks = found.tasks(outcome)
        (contrast,) = compare_arms([first, arm], outcome=outcome, tasks=tasks).named
        effect = contrast.effects[MACRO]
        low, high = effect.interval
        digits = OUTCOMES[outcome].fine
        difference = f"{effect.difference:+.{digits}f}"
        if low > 0 or high < 0:
            difference = f"**{difference}**"
        cells.append(f"{difference} ({low:.{digits}f} to {high:.{digits}f})".replace("-", "−"))
    return cells


def reruns_table(found: ScoredExperiment, other: ScoredExperiment) -> str:
    """How far the runs of a method are from those with the same rate and seed in another experiment."""
    rows = [["", "learning rate", "seed", *(OUTCOMES[outcome].title for outcome in OUTCOMES_NAMED)]]
    then = _runs_of(other)
    for (method, rate, seed), run in _runs_of(found).items():
        if (method, rate, seed) not in then:
            continue
        cells = []
        for outcome in OUTCOMES_NAMED:
            unit = OUTCOMES[outcome]
            moved = unit.factor * change(outcome, run, then[method, rate, seed])
            cells.append(f"{moved:+.{unit.fine}f}")
        rows.append([method, f"{rate:g}", str(seed), *cells])
    return markdown(rows)


def _runs_of(found: ScoredExperiment) -> dict[tuple[str, float | None, int | None], Evaluation]:
    """Method, rate and seed -> the answers of that run."""
    runs = {}
    for arm in found.arms:
        rate = found.row(arm.name).rate
        for seed, run in arm.runs.items():
            runs[method_of(arm.name), rate, seed] = run
    return runs


def figure(canvas: Canvas, methods: Mapping[str, Sequence[AtRate]]) -> Markup:
    """A line for each method, from its lowest to its highest rate; the marks grow with the rate. Gain and held-out loss
    over what is forgotten."""
    with canvas.figure(8.4, 3.8, columns=2) as (drawn, rows):
        by_gain, by_loss = rows[0]
        for method, rates in methods.items():
            style = canvas.style(method)
            _draw(by_loss, rates, [one.held_out for one in rates], style, label=None)
            _draw(by_gain, rates, [one.gained for one in rates], style, label=method)
        by_gain.set(xlim=by_gain.get_xlim(), ylim=by_gain.get_ylim())  # far from the base, they stay apart
        draw_base(by_gain, "")
        by_gain.set_title("Gain over the base")
        by_loss.set(xlabel=by_gain.get_xlabel(), ylabel="nats per token", title="Held-out loss: lower is better")
        by_loss.locator_params(nbins=5)
        by_gain.get_legend().remove()
        drawn.legend(*by_gain.get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
        drawn.set_layout_engine("constrained", w_pad=0.12)
    return canvas.keep("rates", drawn)


def _draw(axes: Axes, rates: Sequence[AtRate], values: Sequence[Floats], style: Style, *, label: str | None) -> None:
    """Means of these values with their standard errors over the seeds; the best rate's mark is filled."""
    x = [one.forgotten.mean() for one in rates]
    y = [of_runs.mean() for of_runs in values]
    axes.plot(x, y, color=style.color, linewidth=1.2, alpha=0.6)
    for place, one in enumerate(rates):
        fill = "none"
        shown = None
        if one.is_best:
            fill = style.color
            shown = label
        axes.errorbar(
            x[place],
            y[place],
            _error(values[place]),
            _error(one.forgotten),
            color=style.color,
            marker=style.marker,
            markersize=4.5 + 2 * place,
            markerfacecolor=fill,
            linestyle="",
            elinewidth=1,
            label=shown,
        )


def _error(values: Floats) -> float:
    """Standard error of the mean; 0 for one value."""
    return mean_of(values.tolist()).error or 0.0


def pictures(found: ScoredExperiment) -> dict[str, str]:
    """Path in docs/ -> SVG."""
    methods = by_method(found)
    with tempfile.TemporaryDirectory() as folder:
        svg = figure(Canvas(Path(folder), list(methods)), methods)
    return {"rates.svg": from_report(svg)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw and tabulate gain and forgetting by learning rate.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="%(default)s")
    parser.add_argument("--print-only", action="store_true", help="leave the document and the figure as they are")
    parser.add_argument("--reruns-of", type=Path, metavar="FOLDER", help="print how far runs made again are from these")
    given = parser.parse_args()
    found = load(given.folder)
    if given.reruns_of:
        print(reruns_table(found, load(given.reruns_of)))
        return 0
    methods = by_method(found)
    publish(f"{rates_table(methods)}\n\n{made_of(found)}", PAGE, "rates", print_only=given.print_only)
    publish(beside_table(found), PAGE, "beside", print_only=given.print_only)
    for outcome in OUTCOMES_NAMED:
        said = "\n".join(f"* {line}" for line in found.concluded(outcome))
        print(said)
    if not given.print_only:
        write_pictures(pictures(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
