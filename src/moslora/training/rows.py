"""The encoded rows of a run, and remarks about them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from moslora.data.encode import Encoded, Encoder, encode_examples
from moslora.data.select import Selection
from moslora.data.sources import data_hash, differences
from moslora.data.steps import StepPlan, label_count
from moslora.prompts import FORMATS
from moslora.recipe import DataSection
from moslora.tasks import INSTRUCTION, task_number

JOINS = (
    "this tokenizer merges the end of a prompt with the answer, so prompt and answer have different tokens together and"
    " apart; training and scoring encode them apart"
)


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, and remarks about them."""

    rows: list[Encoded]
    validation: list[Encoded]
    sha256: str
    notes: list[str]
    leaks: dict[str, int] | None

    def facts(self, plan: StepPlan, *, steps: int) -> dict[str, Any]:
        """For the manifest; ``tasks`` counts the rows of each task in the first ``steps`` of ``plan``."""
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
        if truncated:
            share = truncated / len(self.rows)
            lines.append(f"{truncated:,} rows ({share:.1%}) lost the start of their question to data.max_length")
        return lines + [f"note: {note}" for note in self.notes]


def training_data(selection: Selection, section: DataSection, encoder: Encoder, *, mixer: str) -> TrainingData:
    """The selected rows, encoded, for an adapter with the mixer kind ``mixer``."""
    format = FORMATS[section.format]
    sample = map(format.train, selection.training[:20])
    return TrainingData(
        rows=encode_examples(selection.training, format, encoder, loss_on=section.loss_on),
        validation=encode_examples(selection.validation, format, encoder, loss_on=section.loss_on),
        sha256=data_hash(selection.training),
        notes=[
            *differences(section.source, section.tasks, winogrande=section.winogrande),
            *_leak_notes(selection),
            *(_gate_notes(selection) if mixer == "task-gate" else []),
            *([JOINS] if not format.joint and any(map(encoder.joins, sample)) else []),
        ],
        leaks=selection.leaks,
    )


def _leak_notes(selection: Selection) -> list[str]:
    if selection.leaks is None:
        return []
    each = ", ".join(f"{task} {count:,}" for task, count in selection.leaks.items())
    lines = [f"data.drop_leaks: rows left out because they are test rows: {each or 'none'}"]
    if selection.incomparable:
        lines.append(
            f"data.drop_leaks: {selection.incomparable:,} instructions of an unknown template were not compared"
        )
    return lines


def _gate_notes(selection: Selection) -> list[str]:
    nameless = sum(example.task == INSTRUCTION for example in selection.training)
    if not nameless:
        return []
    return [
        f"{nameless:,} rows name no task: they train the gate's shared embedding, which evaluation and merge do not"
        ' use; if they belong to a task, add the key "task"'
    ]
