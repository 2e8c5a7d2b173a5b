"""The figures and tables of docs/results.md, from the folder of an experiment whose first arm is LoRA.

    python -m benchmarks.article.results                                # docs/experiments/article
    python -m benchmarks.article.results runs/mine --print-only

Forgetting needs texts among the questions, and with gain the base's answers, in one of the runs:
``moslora eval FOLDER/runs/RUN --base``. Costs are those of docs/methods.md, which `make methods` measures.
"""

import argparse
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from benchmarks import DOCS
from benchmarks.article.diagrams import INK
from benchmarks.tables import markdown, publish
from moslora.compare.arms import Arm, load_arms
from moslora.compare.comparison import compare_arms, compare_planned
from moslora.compare.conclusion import lines
from moslora.compare.contrast import Contrast
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.runs import ComparedRun, in_common, read_complete
from moslora.compare.statistics import LEVEL, MACRO, Member, family
from moslora.evaluation.intervals import mean_and_error
from moslora.recipe import Recipe, load_recipe
from moslora.report.canvas import INK as DARK
from moslora.report.canvas import MUTED, SERIES, VARIABLES, Canvas
from moslora.report.figures.forgetting import FORGOTTEN, gain_and_forgetting
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES
from moslora.runs.run import SETTINGS, Run, base_of, is_run

COMPARED = ("log_probability", "accuracy", FORGOTTEN)
"""The forest's columns; arms are in the order of the first."""

SHOWN = {**dict.fromkeys(VARIABLES.values(), INK), **{f"c{n}": color for n, color in enumerate(SERIES)}}
"""The colours of a file on its own: of medium brightness, on a white page and on a dark one."""


@dataclass(frozen=True)
class Found:
    """An experiment's runs, by arm, and their answers, all to the same questions; ``base`` are its base's to those of
    them that it was asked, ``left_out`` says what was asked besides."""

    index: ExperimentIndex
    runs: dict[str, list[Run]]
    arms: list[Arm]
    base: Evaluation | None
    left_out: str

    @property
    def names(self) -> list[str]:
        return [arm.name for arm in self.arms]

    @cached_property
    def contrasts(self) -> dict[str, dict[str, tuple[Contrast, Member]]]:
        """Outcome -> arm -> its contrast with the first, and its numbers in the family: of those drawn or named."""
        pairs, found = [(self.names[0], name) for name in self.names[1:]], {}
        for outcome in filter(self.tasks, COMPARED):
            made = compare_arms(self.arms, contrasts=pairs, outcome=outcome, tasks=self.tasks(outcome)).named
            count = max(len(made), 1 + len(self.index.others))
            members = family([one.effects[MACRO] for one in made], margin=0, count=count)
            found[outcome] = {one.after: (one, member) for one, member in zip(made, members, strict=True)}
        return found

    def concluded(self, outcome: str) -> list[str]:
        """The lines of `moslora compare` about the contrasts that were named."""
        if not (tasks := self.tasks(outcome)):
            return [f"no run has {OUTCOMES[outcome].title}"]
        return lines(compare_planned(self.arms, self.index, outcome=outcome, tasks=tasks))

    def tasks(self, outcome: str) -> str:
        """Those that have it."""
        first = next(iter(self.arms[0].runs.values()))
        return ",".join(task for task, its in first.tasks.items() if its.outcomes.get(outcome))


def load(folder: Path) -> Found:
    """The scored runs of an experiment, and its base, on the questions that all answered."""
    if not (index := read_index(folder)):
        raise SystemExit(f"{folder}: no experiment.json; give the folder of an experiment")
    arms, runs = [arm.each(with_texts) for arm in load_arms([folder])], defaultdict(list)
    for one in index.runs:
        if not one.diverged and is_run(folder / one.folder):
            runs[one.arm].append(Run(folder / one.folder))
    beside = [base_of(run.evaluation()) for its in runs.values() for run in its]
    base = next((read_complete(path) for path in beside if (path / SETTINGS).is_file()), None)
    arms.sort(key=lambda arm: arm.name != index.contrast[0])  # the one that the others are against comes first
    if arms[0].name != index.contrast[0]:
        raise SystemExit(f"{folder}: no scored run of {index.contrast[0]}, which the others are against")
    every = [run.evaluation for arm in arms for run in arm.runs.values()]
    shared, left_out = in_common(every)
    arms = [arm.each(lambda run: run.only(shared)) for arm in arms]
    return Found(index, runs, arms, base and base.only(in_common([*every, base])[0]), left_out)


def with_texts(run: ComparedRun) -> ComparedRun:
    """With the texts that it was asked besides the experiment's questions."""
    every = read_complete(Run(run.path).evaluation()).in_order.tasks
    texts = {task: its for task, its in every.items() if its.outcomes.get(FORGOTTEN)}
    return replace(run, evaluation=replace(run.evaluation, tasks={**run.tasks, **texts}))


def forest(canvas: Canvas, found: Found) -> Markup:
    """A row for each arm: its differences from the first, their intervals, and the differences that do not matter."""
    order = sorted(found.names[1:], key=lambda arm: -found.contrasts[COMPARED[0]][arm][0].effects[MACRO].difference)
    with canvas.figure(8.4, 1.5 + 0.29 * len(order), columns=len(found.contrasts)) as (figure, ((*axes,),)):
        for place, outcome in zip(axes, found.contrasts, strict=True):
            unit = OUTCOMES[outcome]
            place.axvspan(-unit.margin, unit.margin, color=SERIES[2], alpha=0.25, lw=0, label="equivalence margin")
            place.axvline(0, color=MUTED, linewidth=1.2)
            for row, arm in enumerate(order):
                contrast, (interval, _, different) = found.contrasts[outcome][arm]
                low, high = (unit.factor * end for end in interval)
                fill = SERIES[0] if different <= LEVEL else "none"
                style = {"color": SERIES[0], "markersize": 5.5, "markerfacecolor": fill}
                place.plot((low, high), (row, row), color=SERIES[0], linewidth=1.8, solid_capstyle="round")
                place.plot(unit.factor * contrast.effects[MACRO].difference, row, "o", **style)
            place.set(title=unit.title.removesuffix(", %"), xlabel=f"difference from {found.names[0]}, {unit.unit}")
            place.set_yticks(range(len(order)), order if place is axes[0] else [])
            place.tick_params(axis="y", length=0, labelcolor=DARK)
            place.grid(axis="y", visible=False)
            place.set_ylim(len(order) - 0.5, -0.5)
            place.spines["left"].set_visible(False)
            place.locator_params(axis="x", nbins=5)
            place.margins(x=0.08)
        figure.set_layout_engine("constrained", w_pad=0.12)
        for fill, label in ((SERIES[0], "difference shown (Holm)"), ("none", "none shown")):
            style = {"color": SERIES[0], "markersize": 5.5, "markerfacecolor": fill}
            axes[0].plot([], [], "o-", linewidth=1.8, label=label, **style)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return canvas.keep("forest", figure)


def standalone(svg: Markup) -> str:
    """A page's SVG as a file of its own."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    text = re.sub(r"var\(--(\w+)\)", lambda found: SHOWN[found[1]], svg).replace("<svg", f"<svg {names}", 1)
    return text.replace(f"stroke: {SHOWN['grid']}; stroke-width: 0.8", f"stroke: {SHOWN['grid']}; stroke-opacity: 0.3")


def level(runs: Sequence[ComparedRun | Evaluation], outcome: str) -> str:
    """The mean over seeds of the macro average, and its standard error; "–" if the runs do not have it."""
    columns = [[its.outcomes.get(outcome) for its in run.tasks.values()] for run in runs]
    means = [fmean(map(fmean, had)) for column in columns if (had := [values for values in column if values])]
    if not means:
        return "–"
    unit = OUTCOMES[outcome]
    mean, error = mean_and_error([unit.factor * value for value in means])
    return f"{mean:.{unit.fine}f}" + ("" if error is None else f" ± {error:.{unit.fine}f}")


def costs() -> list[tuple[Recipe, str, str]]:
    """Every method on the quickstart's model, its step time and its peak memory as shares of LoRA's, from
    docs/methods.md."""
    table = (DOCS / "methods.md").read_text(encoding="utf-8").partition("<!-- methods table -->")[2]
    rows = re.findall(r"^\| `([\w/-]+)` \| [\w-]+ \| [^|]+ \| ([^|]+) \| ([^|]+) \|", table, re.M)
    return [(load_recipe("smollm2-135m", [f"extends=methods/{name}"]), *cells) for name, *cells in rows]


def cost_of(recipe: Recipe) -> dict[str, Any]:
    """What of its adapter a step's time and memory depend on."""
    section = recipe.adapter.model_dump()
    section["mixer"] = {key: value for key, value in section.get("mixer", {}).items() if key != "init"}
    return {key: value for key, value in section.items() if key not in ("alpha", "scaling")}


def arms_table(found: Found) -> str:
    """A row for the base and each arm; below it, what the runs are."""
    costs_of = "trained parameters", "step time / LoRA's", "peak memory / LoRA's"
    rows = [["", "learning rate", *(OUTCOMES[outcome].title for outcome in COMPARED), *costs_of]]
    first = next(iter(found.arms[0].runs.values()))
    if found.base and not in_common([first.evaluation, found.base])[1]:
        rows.append(["base", "", *(level([found.base], outcome) for outcome in COMPARED), "0", "", ""])
    known = costs()
    for arm in found.arms:
        run, *_ = found.runs[arm.name]
        alike = [row for row in known if cost_of(row[0]) == cost_of(run.recipe)]
        alike.sort(key=lambda row: row[0].adapter != run.recipe.adapter)  # measured itself, or but for M's start
        cost = alike[0][1:] if alike else ("–", "–")
        count = run.facts.get("trainable_parameters")
        cells = [level([*arm.runs.values()], outcome) for outcome in COMPARED]
        rows.append([arm.name, f"{run.recipe.training.learning_rate:g}", *cells, f"{count:,}" if count else "–", *cost])
    seeds = " or ".join(map(str, sorted({len(arm.runs) for arm in found.arms})))
    asked = [len(first.tasks[task].ids) for task in found.tasks(COMPARED[0]).split(",")]
    facts = [run.facts for runs in found.runs.values() for run in runs]
    made = {(card.get("hardware", {}).get("device"), card.get("versions", {}).get("torch")) for card in facts}
    machines = "; ".join(f"{device}, torch {torch}" for device, torch in made if device) or "Machine not recorded"
    said = f"Means over {seeds} seeds ± standard error; {sum(asked):,} questions of {len(asked)} sets. {machines}."
    return "\n\n".join(filter(None, [markdown(rows), said, found.left_out]))


def figures(found: Found) -> Mapping[str, Markup | None]:
    with tempfile.TemporaryDirectory() as folder:
        canvas = Canvas(Path(folder), found.names)
        asked = {task: its.ids for task, its in found.base.tasks.items()} if found.base else {}
        runs = [(arm.name, run.evaluation.only(asked)) for arm in found.arms for run in arm.runs.values()]
        traded = gain_and_forgetting(canvas, runs, found.base) if found.base else None
        return {"forest": forest(canvas, found), "gain-and-forgetting": traded}


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw and tabulate an experiment's results.")
    parser.add_argument("folder", type=Path, nargs="?", default=DOCS / "experiments" / "article", help="%(default)s")
    parser.add_argument("--docs", type=Path, default=DOCS / "results.md", help="where the tables are written")
    parser.add_argument("--print-only", action="store_true", help="leave documents and figures as they are")
    given = parser.parse_args()
    found = load(given.folder)
    said = {"arms": arms_table(found)}
    for name, outcome in {"conclusions": found.index.outcome, "forgetting": FORGOTTEN}.items():
        said[name] = "\n".join(f"* {line}" for line in found.concluded(outcome))
    for name, text in said.items():
        publish(text, given.docs, name, print_only=given.print_only)
    if not given.print_only:
        (folder := given.docs.with_suffix("")).mkdir(exist_ok=True)
        for name, svg in figures(found).items():
            if svg:
                (folder / f"{name}.svg").write_text(standalone(svg), encoding="utf-8")
                print(f"written: {folder / name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
