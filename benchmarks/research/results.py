"""The first edition's figures in docs/results-runs.md, from the tables of an experiment whose first arm is LoRA.

    python -m benchmarks.research.results                          # docs/experiments/article
    python -m benchmarks.research.results packed --docs drawn      # moslora experiment FILE --pack packed wrote it

Forgetting needs texts among the questions, and with gain the base's answers: ``moslora eval FOLDER/runs/RUN --base``,
before the runs are packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.svg import canvas_of, from_report, write_pictures
from moslora.compare.arms import Arm, all_runs, load_arms
from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.comparison import compare_arms
from moslora.compare.contrast import Contrast
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.statistics import LEVEL, Member, family_with
from moslora.compare.tables import FinishedRun, read_tables
from moslora.report.canvas import INK as DARK
from moslora.report.canvas import MUTED, SERIES, Canvas
from moslora.report.figures.forgetting import FORGOTTEN, gain_and_forgetting
from moslora.runs.evaluation import Evaluation, questions_in_common
from moslora.runs.outcomes import OUTCOMES
from moslora.runs.scores import MACRO

COMPARED = ("log_probability", "accuracy", FORGOTTEN)
"""The forest's columns; arms are in the order of the first."""

FOUR = ("two-subspace", "moslora", "lora-moe-topk", "moelora")
"""README's forest has one arm of each kind: M fixed, M learned, a gate for each token, a gate for each task."""

GAINED_AND_FORGOTTEN = ("log_probability", FORGOTTEN)
"""Its columns."""


@dataclass(frozen=True)
class ScoredExperiment:
    """The scored runs of an experiment, and their answers, all to the same questions.

    Attributes:
        index: of the experiment.
        rows: of the runs with answers, in the experiment's table.
        arms: the one that the others are held against comes first.
        base: the base's answers to those of these questions that it was asked; ``None`` if it was asked none.
    """

    index: ExperimentIndex
    rows: Sequence[FinishedRun]
    arms: list[Arm]
    base: Evaluation | None

    @property
    def names(self) -> list[str]:
        return [arm.name for arm in self.arms]

    def row(self, arm: str) -> FinishedRun:
        """Table row of the first run of ``arm``."""
        return next(row for row in self.rows if row.arm == arm)

    @property
    def first_run(self) -> ComparedRun:
        return next(iter(self.arms[0].runs.values()))

    @cached_property
    def contrasts(self) -> dict[str, dict[str, tuple[Contrast, Member]]]:
        """Outcome -> arm -> its contrast with the first, and what holds of it in the family of those drawn or named."""
        first, *others = self.names
        pairs = [(first, other) for other in others]
        count = max(len(pairs), 1 + len(self.index.others))
        found = {}
        for outcome in filter(self.tasks, COMPARED):
            contrasts = compare_arms(self.arms, contrasts=pairs, outcome=outcome, tasks=self.tasks(outcome)).named
            effects = [one.effects[MACRO] for one in contrasts]
            members = family_with(effects, [one.distribution.beyond(0) for one in effects], count=count)
            found[outcome] = {one.after: (one, member) for one, member in zip(contrasts, members, strict=True)}
        return found

    @property
    def known_base(self) -> Evaluation:
        """The base's answers.

        Raises:
            SystemExit: they are missing.
        """
        if self.base is None:
            raise SystemExit("the base's answers are missing; moslora eval RUN --base of one run, and pack again")
        return self.base

    def asked_as_base(self, base: Evaluation) -> dict[str, list[ComparedRun]]:
        """Arm -> its runs with their answers to the questions of the base."""
        asked = {task: answers.ids for task, answers in base.tasks.items()}
        return {arm.name: [run.only(asked) for run in arm.runs.values()] for arm in self.arms}

    def tasks(self, outcome: str) -> str:
        """The tasks that have this outcome, separated by commas."""
        return ",".join(task for task, answers in self.first_run.tasks.items() if answers.outcomes.get(outcome))


def load(folder: Path) -> ScoredExperiment:
    """The scored runs of an experiment, and its base, on the questions that all answered."""
    index = read_index(folder)
    if index is None or index.card is None:
        raise SystemExit(f"{folder}: no tables of an experiment; moslora experiment FILE --pack FOLDER writes them")
    arms = load_arms([folder])
    arms.sort(key=lambda arm: arm.name != index.contrast[0])
    if arms[0].name != index.contrast[0]:
        raise SystemExit(f"{folder}: no scored run of {index.contrast[0]}, which the others are against")
    evaluations = evaluations_of(all_runs(arms))
    shared, _ = questions_in_common(evaluations)
    arms = [arm.each(lambda run: run.only(shared)) for arm in arms]
    base = evaluations[0].base
    if base is not None:
        asked_too, _ = questions_in_common([*evaluations, base])
        base = base.only(asked_too)
    rows = [row for row in read_tables(folder) if row.role == "scored" and not row.diverged]
    return ScoredExperiment(index, rows, arms, base)


def draw_forest(
    canvas: Canvas, found: ScoredExperiment, name: str, *, arms: Sequence[str], outcomes: Sequence[str], width: float
) -> Markup:
    """A row for each arm: its differences from the first, their intervals, and the differences that do not matter.

    Args:
        canvas: keeps the figure as ``name``.
        found: has the contrasts.
        arms: that are shown; their intervals hold for all arms of the experiment.
        outcomes: a column for each, at least two.
        width: of the figure, in inches.
    """
    by_difference = found.contrasts[COMPARED[0]]
    order = sorted(arms, key=lambda arm: -by_difference[arm][0].effects[MACRO].difference)
    with canvas.figure(width, 1.3 + 0.28 * len(order), columns=len(outcomes)) as (figure, rows):
        axes = rows[0]
        for place, outcome in zip(axes, outcomes, strict=True):
            draw_differences(place, found, outcome, order)
        axes[0].set_yticks(range(len(order)), order)
        figure.set_layout_engine("constrained", w_pad=0.12)
        line = {"color": SERIES[0], "markersize": 5.5, "linewidth": 1.8}
        axes[0].plot([], [], "o-", markerfacecolor=SERIES[0], label="difference shown (Holm)", **line)
        axes[0].plot([], [], "o-", markerfacecolor="none", label="none shown", **line)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return canvas.keep(name, figure)


def draw_differences(place: Any, found: ScoredExperiment, outcome: str, order: Sequence[str]) -> None:
    """A column of the forest: the differences in one outcome, a row per arm."""
    unit = OUTCOMES[outcome]
    place.axvspan(-unit.margin, unit.margin, color=SERIES[2], alpha=0.25, lw=0, label="equivalence margin")
    place.axvline(0, color=MUTED, linewidth=1.2)
    for row, arm in enumerate(order):
        contrast, member = found.contrasts[outcome][arm]
        ends = [unit.factor * end for end in member.interval]
        fill = "none"
        if member.different <= LEVEL:
            fill = SERIES[0]
        difference = unit.factor * contrast.effects[MACRO].difference
        place.plot(ends, (row, row), color=SERIES[0], linewidth=1.8, solid_capstyle="round")
        place.plot(difference, row, "o", color=SERIES[0], markersize=5.5, markerfacecolor=fill)
    place.set(title=unit.title.removesuffix(", %"), xlabel=f"difference from {found.names[0]}, {unit.unit}")
    place.set_yticks(range(len(order)), [])
    place.tick_params(axis="y", length=0, labelcolor=DARK)
    place.grid(axis="y", visible=False)
    place.set_ylim(len(order) - 0.5, -0.5)
    place.spines["left"].set_visible(False)
    place.locator_params(axis="x", nbins=4)
    place.margins(x=0.08)


def figures(found: ScoredExperiment) -> dict[str, Markup | None]:
    """Name -> figure; ``None`` where an experiment lacks what it shows: arms, texts or the base's answers."""
    others = found.names[1:]
    four = [arm for arm in FOUR if arm in others]
    drawn: dict[str, Markup | None] = dict.fromkeys(("forest", "forest-four", "gain-and-forgetting"))
    with canvas_of(found.names) as canvas:
        drawn["forest"] = draw_forest(canvas, found, "forest", arms=others, outcomes=tuple(found.contrasts), width=8.4)
        if four and FORGOTTEN in found.contrasts:
            drawn["forest-four"] = draw_forest(
                canvas, found, "forest-four", arms=four, outcomes=GAINED_AND_FORGOTTEN, width=6.2
            )
        if found.base is not None:
            asked = found.asked_as_base(found.base)
            runs = [(arm, run.evaluation) for arm, of_arm in asked.items() for run in of_arm]
            drawn["gain-and-forgetting"] = gain_and_forgetting(canvas, runs, found.base)
    return drawn


def pictures(found: ScoredExperiment) -> dict[str, str]:
    """Path in docs/ -> SVG, of the figures that there are."""
    return {f"results/{name}.svg": from_report(figure) for name, figure in figures(found).items() if figure is not None}


def main(folder: Path = DOCS / "experiments" / "article", *, docs: Path = DOCS) -> None:
    write_pictures(pictures(load(folder)), docs)


if __name__ == "__main__":
    command(main)
