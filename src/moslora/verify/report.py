"""What a verification has found: the lines that are printed, and the same as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from moslora.compare.arms import cluster_codes
from moslora.compare.statistics import MACRO, Effect, effects
from moslora.errors import counted
from moslora.recipe.builtin import printable
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES
from moslora.verify.fit import Fit
from moslora.verify.verdict import Verdict

REPORT = "verification.json"
"""In the folder of a verification."""


@dataclass(frozen=True)
class Report:
    """A server against a run.

    Attributes:
        server: its address.
        model: the model's name there.
        evaluation: folder of the run's answers.
        asked: questions that the server was sent.
        answered: those that it answered.
        same: those of them that it answers with the run's option.
        how: how it was asked, and its log-probabilities read.
        effects: outcome -> the server's minus the run's, of the tasks' mean; those that have two questions a task.
        verdict: what it computes.
        fit: how much of the adapter it computes; ``None`` without the base's answers, and of texts.
        tolerance: what rounding explains of a distance, in nats.
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
    def lines(self) -> list[str]:
        """What is printed, the verdict last."""
        found = [
            " ".join(filter(None, [self.server, printable(self.model), "against", str(self.evaluation)])),
            f"{counted(self.asked, 'question')} {self.how}",
            f"same answer to {self.same} of {self.answered}",
        ]
        if self.answered < self.asked:
            found.append(f"{self.asked - self.answered} not answered: refused, or not told in whole")
        for name, effect in self.effects.items():
            outcome = OUTCOMES[name]
            change = f"{outcome.change(effect.difference)} {outcome.unit}"
            found.append(f"{outcome.title}: server − run {change} (95 % interval {outcome.range(effect.interval)})")
        found.append(self.whole_verdict)
        return found

    @property
    def whole_verdict(self) -> str:
        """The verdict; of a quantisation with the accuracy that it costs."""
        accuracy = self.effects.get("accuracy")
        if self.verdict.kind != "quantised" or accuracy is None:
            return self.verdict.says
        outcome = OUTCOMES["accuracy"]
        change = f"{outcome.change(accuracy.difference)} points ({outcome.range(accuracy.interval)})"
        return f"{self.verdict.says}; accuracy {change}"

    def to_json(self) -> str:
        """All numbers, for a program."""
        effects = {}
        for name, effect in self.effects.items():
            effects[name] = {"difference": effect.difference, "interval": effect.interval}
        verdict = {"verdict": self.verdict.kind, "says": self.whole_verdict, "passed": self.verdict.passed}
        values = {**asdict(self), **verdict, "evaluation": str(self.evaluation), "effects": effects}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def effects_of(server: Evaluation, run: Evaluation) -> dict[str, Effect]:
    """The server's outcomes minus the run's, the mean over tasks."""
    found = {}
    for name, outcome in OUTCOMES.items():
        if not outcome.always_shown:
            continue
        differences = {}
        for task, answers in server.tasks.items():
            own = run.tasks[task].only(answers.ids)
            if name in answers.outcomes and name in own.outcomes and own.cluster_count > 1:
                theirs = dict(zip(answers.ids, answers.outcomes[name], strict=True))
                ours = dict(zip(own.ids, own.outcomes[name], strict=True))
                differences[task] = np.array([[theirs[id] - ours[id] for id in own.ids]])
        if differences:
            shared = run.only({task: server.tasks[task].ids for task in differences})
            found[name] = effects(differences, binary=outcome.binary, clusters=cluster_codes([shared]))[MACRO]
    return found
