"""The rows of a run: loaded, capped, split, encoded, and what is to be said of them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from moslora.data.encode import Encoded, Encoder, encode_examples
from moslora.data.select import Selection, select
from moslora.data.sources import data_hash, differences
from moslora.data.steps import StepPlan, label_count
from moslora.prompts import FORMATS
from moslora.recipe import Recipe
from moslora.tasks import INSTRUCTION, task_number


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, and what is to be said of them."""

    rows: list[Encoded]
    validation: list[Encoded]
    sha256: str
    notes: list[str]
    joins: bool
    leaks: dict[str, int] | None

    def facts(self, plan: StepPlan, *, steps: int) -> dict[str, Any]:
        """For the manifest; ``tasks`` counts the rows of each that the first ``steps`` of ``plan`` draw, which may be
        fewer tasks than there are rows of, where the run is short or not over."""
        drawn = Counter(self.rows[row].task for step in range(steps) for row in plan[step])
        tasks = {task: drawn[task] for task in sorted(drawn, key=task_number)}
        return {"sha256": self.sha256, "tasks": tasks, "notes": self.notes, "leaks_left_out": self.leaks}

    def remarks(self) -> list[str]:
        truncated = sum(row.truncated for row in self.rows)
        tokens = sum(len(row.input_ids) for row in self.rows)
        lines = [
            f"{len(self.rows):,} training rows of {tokens / len(self.rows):.1f} tokens on average, of which"
            f" {label_count(self.rows) / len(self.rows):.1f} labelled; {len(self.validation)} validation rows"
        ]
        if self.joins:
            lines.append(
                "note: this tokenizer joins the end of a prompt to the answer, so that prompt + answer is encoded"
                " otherwise as a whole than in its parts; training and scoring here take the parts"
            )
        if truncated:
            share = truncated / len(self.rows)
            lines.append(f"{truncated:,} rows ({share:.1%}) lost the start of their question to data.max_length")
        return lines + [f"note: {note}" for note in self.notes]


def training_data(recipe: Recipe, encoder: Encoder) -> TrainingData:
    """The rows that ``recipe.data`` describes."""
    section = recipe.data
    selection = select(section, recipe.evaluation, seed=recipe.seed)
    format = FORMATS[section.format]
    return TrainingData(
        rows=encode_examples(selection.training, format, encoder, loss_on=section.loss_on),
        validation=encode_examples(selection.validation, format, encoder, loss_on=section.loss_on),
        sha256=data_hash(selection.training),
        notes=[
            *differences(section.source, section.tasks, winogrande=section.winogrande),
            *_leak_notes(selection),
            *_gate_notes(recipe, selection),
        ],
        joins=not format.joint and any(encoder.joins(format.train(example)) for example in selection.training[:20]),
        leaks=selection.leaks,
    )


def _leak_notes(selection: Selection) -> list[str]:
    if selection.leaks is None:
        return []
    each = ", ".join(f"{task} {count:,}" for task, count in selection.leaks.items())
    lines = [f"data.drop_leaks: rows left out because they are test rows: {each or 'none'}"]
    if selection.incomparable:
        lines.append(f"data.drop_leaks: {selection.incomparable:,} instructions of no known template were not compared")
    return lines


def _gate_notes(recipe: Recipe, selection: Selection) -> list[str]:
    nameless = sum(example.task == INSTRUCTION for example in selection.training)
    if recipe.adapter.mixer.kind != "task-gate" or not nameless:
        return []
    return [
        f"{nameless:,} rows name no set: they train the gate's embedding for rows of none, which no evaluation and no"
        ' merge takes; where they are of one, give them the key "task"'
    ]
