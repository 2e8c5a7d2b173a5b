"""The tables and the figure of docs/forgetting.md, from the tables of `forgetting` and `forgetting-second`.

    python -m benchmarks.research.forgetting_page                        # docs/experiments
    python -m benchmarks.research.forgetting_page packed --print-only    # packed/forgetting, packed/forgetting-second

`moslora experiment FILE --pack FOLDER` writes an experiment's tables; the base is asked before, by
``moslora eval RUN --base`` of one run. An experiment without tables is left out. The planned tests are those of
`benchmarks.research.forgetting`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.research import forgetting
from benchmarks.research.rates import difference_cell, draw_mean, effect_of, share_legend
from benchmarks.research.results import ScoredExperiment, load
from benchmarks.svg import canvas_of, from_report, write_pictures
from benchmarks.tables import markdown, publish
from moslora.compare.arms import Arm, load_arms
from moslora.compare.distribution import Floats
from moslora.compare.statistics import LEVEL, holm
from moslora.experiment.tables import mean_in_words
from moslora.report.canvas import Canvas
from moslora.report.figures.forgetting import change, draw_base
from moslora.runs.outcomes import OUTCOMES
from moslora.tasks import COMMONSENSE

FOLDER = DOCS / "experiments"

PAGE = DOCS / "forgetting.md"

MODELS = {"SmolLM2-135M": "forgetting", "Qwen2.5-Coder-0.5B": "forgetting-second"}
"""Model -> the experiment with it."""

CURVE = ("recommended", "lora-0.8", "lora")
"""The arms that apply one adapter at rising strengths. The curve through them begins at the base."""


@dataclass(frozen=True)
class Measure:
    """A column of the table of knobs: the mean change of an outcome against the base over some tasks.

    Attributes:
        title: heading of the column.
        outcome: name of the outcome.
        tasks: names of the tasks that are averaged.
        with_share: whether a cell also has the change in percent of LoRA's.
    """

    title: str
    outcome: str
    tasks: tuple[str, ...]
    with_share: bool = False


SETS = tuple(COMMONSENSE)

MEASURES = (
    Measure("log p gained", "log_probability", SETS, with_share=True),
    Measure("summed log p gained", "log_probability_summed", SETS, with_share=True),
    Measure("accuracy gained", "accuracy", SETS),
    Measure("Wikipedia: nats per byte lost", "nats_per_byte", ("passages",), with_share=True),
    Measure("history: nats per byte lost", "nats_per_byte", ("mmlu_history",)),
    Measure("medicine: log p gained", "log_probability", ("mmlu_medicine", "mmlu_clinical")),
)
GAINED = MEASURES[0]
FORGOTTEN = MEASURES[3]
COMPARED = MEASURES[:5]
"""The measures in which `EXPLORED` are compared."""

EXPLORED = (
    ("lora-0.8", "lora-half-0.8"),
    ("lora-0.8", "moslora-0.8"),
    ("lora-0.8", "moelora-0.8"),
    ("lora", "moslora"),
    ("lora", "moelora"),
    ("moelora", "lora-0.8"),
)
"""Pairs of arms whose comparison was not planned, the second against the first."""


def changes(found: ScoredExperiment, measure: Measure) -> dict[str, Floats]:
    """Arm -> the change of a measure against the base, for each run."""
    base = found.known_base.restricted_to(measure.tasks)
    by_arm = {}
    for arm, runs in found.asked_as_base(found.known_base).items():
        evaluations = [run.evaluation.restricted_to(measure.tasks) for run in runs]
        by_arm[arm] = np.array([change(measure.outcome, evaluation, base) for evaluation in evaluations])
    return by_arm


def planned(found: ScoredExperiment) -> list[Arm]:
    """The arms of which a contrast was planned."""
    names = {name for contrast in found.index.named for name in contrast}
    return [arm for arm in found.arms if arm.name in names]


def knobs_table(found: ScoredExperiment, arms: Sequence[Arm]) -> str:
    """A row for each arm: what it gains and forgets, its held-out loss, and the strength at which it is applied."""
    by_measure = {measure: changes(found, measure) for measure in MEASURES}
    rows = [["arm", "strength", *(measure.title for measure in MEASURES), "held-out loss"]]
    for arm in arms:
        cells = [_cell(by_arm[arm.name], by_arm[forgetting.LORA], measure) for measure, by_arm in by_measure.items()]
        held_out = [run.validation_loss for run in arm.runs.values() if run.validation_loss is not None]
        rows.append([arm.name, _strengths(found, arm.name), *cells, mean_in_words(held_out, digits=3)])
    return markdown(rows)


def _cell(values: Floats, of_lora: Floats, measure: Measure) -> str:
    """Mean ± standard error over seeds, and the mean in percent of LoRA's."""
    outcome = OUTCOMES[measure.outcome]
    text = mean_in_words((outcome.factor * values).tolist(), digits=outcome.fine)
    if measure.with_share:
        text += f" ({100 * values.mean() / of_lora.mean():.0f} %)"
    return text.replace("-", "−")


def explored_table(found: ScoredExperiment) -> str:
    """A row for each pair of `EXPLORED`: the differences of the second arm from the first. Bold is a difference that is
    shown after Holm's adjustment over the whole table."""
    arms = {arm.name: arm for arm in found.arms}
    asked: dict[str, tuple[str, str | None]] = {}
    for measure in COMPARED:
        title = measure.title.removesuffix(" gained").removesuffix(" lost")
        asked[title] = (measure.outcome, ",".join(measure.tasks))
    asked["held-out loss"] = ("validation_loss", None)
    effects = {}
    for first, second in EXPLORED:
        for title, (outcome, tasks) in asked.items():
            effects[second, first, title] = effect_of(arms[first], arms[second], outcome, tasks)
    adjusted = dict(zip(effects, holm([effect.p for effect in effects.values()]), strict=True))
    rows = [["arm", "against", *asked]]
    for first, second in EXPLORED:
        cells = []
        for title, (outcome, _) in asked.items():
            one = (second, first, title)
            cells.append(difference_cell(effects[one], OUTCOMES[outcome], bold=adjusted[one] <= LEVEL))
        rows.append([second, first, *cells])
    return markdown(rows)


def _strengths(found: ScoredExperiment, arm: str) -> str:
    """The strengths at which an arm's runs are applied, as 0.7 or 0.6 to 0.8; 1 if it trained its own adapters."""
    strengths = sorted({row.strength or 1.0 for row in found.rows if row.arm == arm})
    if len(strengths) == 1:
        return f"{strengths[0]:g}"
    return f"{strengths[0]:g} to {strengths[-1]:g}"


def figure(canvas: Canvas, models: Mapping[str, ScoredExperiment]) -> Markup:
    """Gain over forgetting, a panel for each model: a mark for each arm, and a line through one adapter's strengths."""
    with canvas.figure(4.4 * len(models) + 0.6, 3.9, columns=len(models), rows=1) as (drawn, axes):
        panels = np.atleast_1d(axes).ravel()
        for panel, (model, found) in zip(panels, models.items(), strict=True):
            _draw_model(panel, canvas, found)
            draw_base(panel, "")
            panel.set_title(model)
        share_legend(drawn, panels, most=4)
        drawn.set_layout_engine("constrained", w_pad=0.12)
    return canvas.keep("forgetting", drawn)


def _draw_model(axes: Any, canvas: Canvas, found: ScoredExperiment) -> None:
    """Mean and standard error of each arm over the seeds, and the curve of strengths through the means."""
    gained = changes(found, GAINED)
    forgotten = changes(found, FORGOTTEN)
    curve = [(0.0, 0.0)]
    curve += [(forgotten[arm].mean(), gained[arm].mean()) for arm in CURVE if arm in gained]
    axes.plot(*zip(*curve, strict=True), color=canvas.style(forgetting.LORA).color, linewidth=1.2, alpha=0.6)
    for arm in planned(found):
        name = arm.name
        draw_mean(axes, forgotten[name], gained[name], canvas.style(name), markersize=6.5, label=name)


def pictures(models: Mapping[str, ScoredExperiment]) -> dict[str, str]:
    """Path in docs/ -> SVG."""
    names = dict.fromkeys(arm.name for found in models.values() for arm in planned(found))
    with canvas_of(names) as canvas:
        return {"forgetting.svg": from_report(figure(canvas, models))}


def planned_table(folder: Path) -> str:
    """The planned tests of an experiment."""
    return markdown(forgetting.table(load_arms([folder]), forgetting.challengers_of(folder)))


def load_models(folder: Path = FOLDER) -> dict[str, ScoredExperiment]:
    """Model -> its experiment, of those with tables in ``folder``."""
    return {model: load(folder / name) for model, name in MODELS.items() if (folder / name).is_dir()}


def main(folder: Path = FOLDER, *, print_only: bool = False) -> None:
    models = load_models(folder)
    for model, found in models.items():
        name = MODELS[model]
        arms = planned(found)
        publish(knobs_table(found, arms), PAGE, f"knobs of {name}", print_only=print_only)
        publish(planned_table(folder / name), PAGE, f"tests of {name}", print_only=print_only)
        others = [arm for arm in found.arms if arm not in arms]
        if others:
            publish(knobs_table(found, others), PAGE, f"explored of {name}", print_only=print_only)
            publish(explored_table(found), PAGE, f"differences of {name}", print_only=print_only)
    if not print_only:
        write_pictures(pictures(models))


if __name__ == "__main__":
    command(main)
