"""The report of a verification, as printed lines and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from moslora.compare.gains import gain_in_words, gain_of
from moslora.compare.statistics import Effect
from moslora.errors import counted
from moslora.recipe.builtin import printable
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES
from moslora.verify.fit import Fit
from moslora.verify.verdict import Verdict

REPORT = "verification.json"
"""File of the report in the folder of a verification."""


@dataclass(frozen=True)
class Report:
    """Comparison of a server with a run.

    Attributes:
        server: address of the server.
        model: the model's name on the server.
        evaluation: folder of the run's answers.
        asked: number of questions that were sent.
        answered: number of questions that the server answered.
        same: number of questions that the server answers as the run does.
        how: form of the prompts, and of the log-probabilities, in words.
        effects: outcome -> the server's minus the run's, as the mean over tasks with at least two clusters.
        verdict: what the server computes.
        fit: share of the adapter that it computes; ``None`` without the base's answers, and where only texts are known.
        tolerance: largest distance that rounding explains, in nats.
    """

    server: str
    model: str
    evaluation: Path
    asked: int
    answered: int
    same: int
    how: str
    effects: Mapping[str, Effect]
    verdict: Verdict
    fit: Fit | None
    tolerance: float

    @property
    def printed(self) -> list[str]:
        """Printed lines, the verdict last."""
        lines = [
            f"{self.server} {printable(self.model)}".rstrip() + f" against {self.evaluation}",
            f"{counted(self.asked, 'question')} {self.how}; {self.answered} answered",
            f"same answer to {self.same} of {self.answered}",
        ]
        for name, effect in self.effects.items():
            outcome = OUTCOMES[name]
            change = gain_in_words(effect, outcome)
            lines.append(f"{outcome.title}: server − run {change} {outcome.unit}, 95 % interval")
        lines.append(self.verdict.says)
        return lines

    def to_json(self) -> str:
        """The report as JSON, for a program."""
        shown = self.effects.items()
        effects = {name: {"difference": each.difference, "interval": each.interval} for name, each in shown}
        verdict = {"verdict": self.verdict.kind, "says": self.verdict.says, "passed": self.verdict.passed}
        values = {**asdict(self), **verdict, "evaluation": str(self.evaluation), "effects": effects}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def effects_of(server: Evaluation, run: Evaluation) -> dict[str, Effect]:
    """Means over tasks of server − run, for each outcome that is always shown; tasks with a single cluster are left
    out."""
    questions = {task: answers.ids for task, answers in server.tasks.items() if answers.cluster_count > 1}
    theirs = server.only(questions)
    ours = run.only(questions)
    effects = {name: gain_of([theirs], ours, outcome) for name, outcome in OUTCOMES.items() if outcome.always_shown}
    return {name: effect for name, effect in effects.items() if effect is not None}
