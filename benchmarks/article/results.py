"""The first edition's figures and tables in docs/results.md, from the tables of an experiment whose first arm is LoRA.

    python -m benchmarks.article.results                                # docs/experiments/article
    python -m benchmarks.article.results packed --print-only            # moslora experiment FILE --pack packed wrote it

Forgetting needs texts among the questions, and with gain the base's answers: ``moslora eval FOLDER/runs/RUN --base``,
before the runs are packed. Costs are those of docs/methods.md, which `make methods` measures.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.svg import canvas_of, from_report, write_pictures
from benchmarks.tables import markdown, publish
from moslora.compare.arms import Arm, all_runs, load_arms
from moslora.compare.comparison import compare_arms, compare_planned
from moslora.compare.conclusion import lines
from moslora.compare.contrast import Contrast
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.statistics import LEVEL, MACRO, Member, family_with
from moslora.compare.tables import TableRun, read_tables
from moslora.experiment.tables import mean_over_seeds
from moslora.recipe import Recipe, load_recipe
from moslora.report.canvas import INK as DARK
from moslora.report.canvas import MUTED, SERIES, Canvas
from moslora.report.figures.forgetting import FORGOTTEN, gain_and_forgetting
from moslora.runs.evaluation import Evaluation, in_common
from moslora.runs.outcomes import OUTCOMES

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
        left_out: a line on what was asked besides.
    """

    index: ExperimentIndex
    rows: Sequence[TableRun]
    arms: list[Arm]
    base: Evaluation | None
    left_out: str

    @property
    def names(self) -> list[str]:
        return [arm.name for arm in self.arms]

    def row(self, arm: str) -> TableRun:
        """That of the first run of an arm."""
        return next(row for row in self.rows if row.arm == arm)

    def recipe(self, arm: str) -> Recipe:
        """The recipe of an arm, whatever its learning rate and seed."""
        assert self.index.card is not None
        return self.index.card.arms[arm].read_recipe()

    @property
    def first_run(self) -> Evaluation:
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
            members = family_with(effects, [one.law.beyond(0) for one in effects], count=count)
            found[outcome] = {one.after: (one, member) for one, member in zip(contrasts, members, strict=True)}
        return found

    def asked_as_base(self, base: Evaluation) -> dict[str, list[Evaluation]]:
        """Arm -> the answers of its runs to the questions of the base."""
        asked = {task: answers.ids for task, answers in base.tasks.items()}
        return {arm.name: [run.only(asked) for run in arm.runs.values()] for arm in self.arms}

    def concluded(self, outcome: str) -> list[str]:
        """The lines of `moslora compare` about the contrasts that were named."""
        tasks = self.tasks(outcome)
        if not tasks:
            return [f"no run has {OUTCOMES[outcome].title}"]
        return lines(compare_planned(self.arms, self.index, outcome=outcome, tasks=tasks))

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
    evaluations = all_runs(arms)
    shared, left_out = in_common(evaluations)
    arms = [arm.each(lambda run: run.only(shared)) for arm in arms]
    base = evaluations[0].base
    if base is not None:
        asked_too, _ = in_common([*evaluations, base])
        base = base.only(asked_too)
    rows = [row for row in read_tables(folder) if row.role == "scored" and not row.diverged]
    return ScoredExperiment(index, rows, arms, base, left_out)


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


Cost = tuple[Recipe, str, str]
"""A method, and its step time and peak memory on the quickstart's model as shares of LoRA's, as text."""


def costs() -> list[Cost]:
    """The costs of every method, from docs/methods.md."""
    _, _, table = (DOCS / "methods.md").read_text(encoding="utf-8").partition("<!-- methods table -->")
    rows = re.findall(r"^\| `([\w/-]+)` \| [\w-]+ \| [^|]+ \| ([^|]+) \| ([^|]+) \|", table, re.M)
    return [(load_recipe("smollm2-135m", [f"extends=methods/{name}"]), *of_method) for name, *of_method in rows]


def costing(recipe: Recipe) -> dict[str, Any]:
    """What of its adapter a step's time and memory depend on."""
    section = recipe.adapter.model_dump()
    section["mixer"] = {key: value for key, value in section.get("mixer", {}).items() if key != "init"}
    return {key: value for key, value in section.items() if key not in ("alpha", "scaling")}


def cost_of(recipe: Recipe, known: Sequence[Cost]) -> tuple[str, str]:
    """Step time and memory of a recipe's method, measured itself or but for M's start; "–" if it is not measured."""
    alike = [cost for cost in known if costing(cost[0]) == costing(recipe)]
    alike.sort(key=lambda cost: cost[0].adapter != recipe.adapter)
    return alike[0][1:] if alike else ("–", "–")


def arms_table(found: ScoredExperiment) -> str:
    """A row for the base and each arm; below it, what the runs are."""
    titles = [OUTCOMES[outcome].title for outcome in COMPARED]
    rows = [["", "learning rate", *titles, "trained parameters", "step time / LoRA's", "peak memory / LoRA's"]]

    def levels(runs: Sequence[Evaluation]) -> list[str]:
        return [mean_over_seeds(runs, outcome) for outcome in COMPARED]

    if found.base is not None and not in_common([found.first_run, found.base])[1]:
        rows.append(["base", "", *levels([found.base]), "0", "", ""])  # with means of the same questions
    known = costs()
    for arm in found.arms:
        row = found.row(arm.name)
        of_arm = levels(list(arm.runs.values()))
        trained = "–" if row.parameters is None else f"{row.parameters:,}"
        rows.append([arm.name, f"{row.rate:g}", *of_arm, trained, *cost_of(found.recipe(arm.name), known)])
    return "\n\n".join(filter(None, [markdown(rows), made_of(found), found.left_out]))


def made_of(found: ScoredExperiment) -> str:
    """Seeds, questions and machines of the runs."""
    seeds = " or ".join(str(number) for number in sorted({len(arm.runs) for arm in found.arms}))
    tasks = found.tasks(COMPARED[0]).split(",")
    questions = sum(len(found.first_run.tasks[task].ids) for task in tasks)
    torch = found.first_run.settings.made_with.get("torch")
    devices = dict.fromkeys(row.device for row in found.rows if row.device is not None)
    where = "; ".join(f"{device}, torch {torch}" for device in devices) or "Machine not recorded"
    asked = f"on the same {questions:,} questions of {len(tasks)} sets"
    return f"Means over {seeds} seeds ± standard error over seeds, {asked}. {where}."


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
            runs = [(arm, run) for arm, of_arm in asked.items() for run in of_arm]
            drawn["gain-and-forgetting"] = gain_and_forgetting(canvas, runs, found.base)
    return drawn


def pictures(found: ScoredExperiment) -> dict[str, str]:
    """Path in docs/ -> SVG, of the figures that there are."""
    return {f"results/{name}.svg": from_report(figure) for name, figure in figures(found).items() if figure is not None}


def main(folder: Path = DOCS / "experiments" / "article", *, docs: Path = DOCS, print_only: bool = False) -> None:
    found = load(folder)
    said = {"arms": arms_table(found)}
    for name, outcome in {"conclusions": found.index.outcome, "forgetting": FORGOTTEN}.items():
        said[name] = "\n".join(f"* {line}" for line in found.concluded(outcome))
    for name, text in said.items():
        publish(text, docs / "results.md", name, print_only=print_only)
    if not print_only:
        write_pictures(pictures(found), docs)


if __name__ == "__main__":
    command(main)
