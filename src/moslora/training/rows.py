"""The encoded rows of a run, and remarks about them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from moslora.data.prepared import Prepared
from moslora.data.sources import differences
from moslora.data.steps import StepPlan
from moslora.data.table import RowTable
from moslora.recipe import DataSection
from moslora.tasks import INSTRUCTION

JOINS = (
    "this tokenizer merges the end of a prompt with the answer, so prompt and answer have different tokens together and"
    " apart; training and scoring encode them apart"
)


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, and remarks about them."""

    rows: RowTable
    validation: RowTable
    sha256: str
    notes: list[str]
    leaks: dict[str, int] | None

    def facts(self, plan: StepPlan, *, steps: int) -> dict[str, Any]:
        """For the manifest; ``tasks`` counts the rows of each task in the first ``steps`` of ``plan``."""
        drawn = Counter(self.rows.tasks[row] for step in range(steps) for row in plan[step])
        tasks = {task: drawn[task] for task in dict.fromkeys(self.rows.tasks) if task in drawn}
        return {"sha256": self.sha256, "tasks": tasks, "notes": self.notes, "leaks_left_out": self.leaks}

    def remarks(self) -> list[str]:
        rows, truncated = self.rows, self.rows.truncated_count()
        lines = [
            f"{len(rows):,} training rows of {rows.token_count() / len(rows):.1f} tokens on average, of which"
            f" {rows.label_count() / len(rows):.1f} labelled; {len(self.validation)} validation rows"
        ]
        if truncated:
            share = truncated / len(rows)
            lines.append(f"{truncated:,} rows ({share:.1%}) lost the start of their question to data.max_length")
        return lines + [f"note: {note}" for note in self.notes]


def training_data(prepared: Prepared, section: DataSection, *, mixer: str) -> TrainingData:
    """The rows that ``section`` describes, for an adapter with a ``mixer`` of that kind."""
    return TrainingData(
        rows=prepared.training,
        validation=prepared.validation,
        sha256=prepared.sha256,
        notes=[
            *differences(section.source, section.tasks, winogrande=section.winogrande),
            *([f"{prepared.repeats:,} rows repeat a validation row and are left out"] if prepared.repeats else []),
            *_leak_notes(prepared),
            *(_gate_notes(prepared.training) if mixer == "task-gate" else []),
            *([JOINS] if prepared.joins else []),
        ],
        leaks=prepared.leaks,
    )


def _leak_notes(prepared: Prepared) -> list[str]:
    if prepared.leaks is None:
        return []
    each = ", ".join(f"{task} {count:,}" for task, count in prepared.leaks.items())
    lines = [f"data.drop_leaks: rows left out because they are test rows: {each or 'none'}"]
    if prepared.incomparable:
        lines.append(f"data.drop_leaks: {prepared.incomparable:,} instructions of no known template were not compared")
    return lines


def _gate_notes(rows: RowTable) -> list[str]:
    nameless = rows.tasks.count(INSTRUCTION)
    if not nameless:
        return []
    return [
        f"{nameless:,} rows name no task: they train the gate's shared embedding, which evaluation and merge do not"
        ' use; if they belong to a task, add the key "task"'
    ]
