"""The runs of a comparison, and the questions that all of them answered."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moslora.console import note_once
from moslora.errors import some
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation, Questions, read_evaluation
from moslora.runs.settings import Settings

PROMPT = "prompt_hash"
HASHES = ("doc_hash", "target_hash", PROMPT)
"""Of a question in a log. Prompts may differ if that is meant, as with a chat template."""


@dataclass(frozen=True)
class ComparedRun:
    """One evaluation, and what is known of its run.

    Attributes:
        evaluation: with the questions of every task in the order of their ids.
        path: of the run, or of the evaluation's folder or log, as the user named it.
        recipe: how it was trained, every field; ``None`` for a model that is no run's, and for a base.
        facts: of its ``run.json``; empty where ``recipe`` is ``None``.
        name: of the run.
        arm: the same for all runs that differ only in the seed.
        seed: ``None`` if it has none, as a base.
        rule: by which validations chose its steps, so that runs of one rule may have different ones; empty otherwise.
    """

    evaluation: Evaluation
    path: Path
    recipe: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    arm: str = ""
    seed: int | None = None
    rule: str = ""

    @property
    def settings(self) -> Settings:
        return self.evaluation.settings

    @property
    def tasks(self) -> Mapping[str, TaskAnswers]:
        return self.evaluation.tasks

    def only(self, questions: Questions) -> "ComparedRun":
        """With the answers to these questions."""
        return replace(self, evaluation=self.evaluation.only(questions))

    def restricted_to(self, tasks: Collection[str], limit: int | None = None) -> "ComparedRun":
        """With what an evaluation of these tasks with this limit has."""
        return replace(self, evaluation=self.evaluation.restricted_to(tasks, limit))


def read_complete(folder: Path) -> Evaluation:
    """The evaluation in ``folder`` without the tasks of which it was interrupted, which are noted."""
    found = read_evaluation(folder)
    if found.unfinished:
        tasks = [f"{task} ({answered:,} of {asked:,})" for task, (answered, asked) in found.unfinished.items()]
        note_once(f"{folder}: interrupted and left out: {some(tasks)}; moslora eval continues it")
    return found.complete
