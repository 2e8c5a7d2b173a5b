"""The rows a run trains on, and what is to be said of them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from moslora.data.prepared import Prepared
from moslora.data.sources import differences
from moslora.data.steps import StepPlan
from moslora.data.table import RowTable
from moslora.recipe import DataSection
from moslora.tasks import INSTRUCTION, task_number


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, and what is to be said of them."""

    rows: RowTable
    validation: RowTable
    sha256: str
    notes: list[str]
    joins: bool
    leaks: dict[str, int] | None

    def facts(self, plan: StepPlan, *, steps: int) -> dict[str, Any]:
        """For the manifest; ``tasks`` counts the rows of each that the first ``steps`` of ``plan`` draw, which may be
        fewer tasks than there are rows of, where the run is short or not over."""
        drawn = Counter(self.rows.tasks[row] for step in range(steps) for row in plan[step])
        tasks = {task: drawn[task] for task in sorted(drawn, key=task_number)}
        return {"sha256": self.sha256, "tasks": tasks, "notes": self.notes, "leaks_left_out": self.leaks}

    def remarks(self) -> list[str]:
        rows, truncated = self.rows, self.rows.truncated_count()
        lines = [
            f"{len(rows):,} training rows of {rows.token_count() / len(rows):.1f} tokens on average, of which"
            f" {rows.label_count() / len(rows):.1f} labelled; {len(self.validation)} validation rows"
        ]
        if self.joins:
            lines.append(
                "note: this tokenizer joins the end of a prompt to the answer, so that prompt + answer is encoded"
                " otherwise as a whole than in its parts; training and scoring here take the parts"
            )
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
            *_leak_notes(prepared),
            *(_gate_notes(prepared.training) if mixer == "task-gate" else []),
        ],
        joins=prepared.joins,
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
        f"{nameless:,} rows name no set: they train the gate's shared embedding, which no evaluation and no merge"
        ' uses; where they belong to a set, add the key "task"'
    ]
