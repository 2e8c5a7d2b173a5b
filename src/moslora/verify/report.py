"""What a verification has found: the lines that are printed, and the same as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from moslora.compare.arms import cluster_codes
from moslora.compare.statistics import MACRO, Effect, effects
from moslora.errors import counted
from moslora.files import write_text
from moslora.recipe.builtin import printable
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES
from moslora.verify.fit import Fit
from moslora.verify.verdict import Verdict

REPORT = "verification.json"
"""In the folder of a verification."""

NOT_YET = Verdict("undecided", "not judged")


@dataclass(frozen=True)
class Report:
    """A server against a run.

    Attributes:
        evaluation: folder of the run's answers.
        asked: questions that the server was sent.
        answered: those that it answered.
        same: those of them that it answers with the run's option.
        how: how it was asked, and its log-probabilities read.
        effects: outcome -> the server's minus the run's, of the tasks' mean; those that have two questions a task.
        verdict: what it computes.
        fit: how much of the adapter it computes; ``None`` without the base's answers, and of texts.
        tolerance: what rounding explains of a distance, in nats.
        hint: the command that asks the base; empty if it was asked.
        server: its address.
        model: the model's name there.
    """

    evaluation: Path
    asked: int
    answered: int
    same: int
    how: str
    effects: Mapping[str, Effect]
    verdict: Verdict = NOT_YET
    fit: Fit | None = None
    tolerance: float = 0.0
    hint: str = ""
    server: str = ""
    model: str = ""

    @classmethod
    def of(cls, run: Evaluation, server: Evaluation, *, asked: int, how: str) -> "Report":
        """The numbers of the server's answers; no verdict yet."""
        found = _chosen_by_id(server)
        own = _chosen_by_id(run)
        return cls(
            evaluation=run.folder,
            asked=asked,
            answered=len(found),
            same=sum(found[id] == own[id] for id in found),
            how=how,
            effects=_effects(run, server),
        )

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
            found.append(_difference(name, effect))
        found.append(self.whole_verdict)
        return found

    @property
    def whole_verdict(self) -> str:
        """The verdict; with the command that asks the base where that would tell more, and of a quantisation with the
        accuracy that it costs."""
        accuracy = self.effects.get("accuracy")
        if self.hint and self.verdict.kind in ("undecided", "not the run"):
            return f"{self.verdict.says}; ask its base: {self.hint}"
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

    def write(self, folder: Path) -> None:
        write_text(folder / REPORT, self.to_json())


def _chosen_by_id(evaluation: Evaluation) -> dict[str, int | None]:
    """The option that each question is answered with."""
    found: dict[str, int | None] = {}
    for answers in evaluation.tasks.values():
        found.update(zip(answers.ids, answers.chosen, strict=True))
    return found


def _difference(name: str, effect: Effect) -> str:
    outcome = OUTCOMES[name]
    return (
        f"{outcome.title}: server − run {outcome.change(effect.difference)} {outcome.unit}"
        f" (95 % interval {outcome.range(effect.interval)})"
    )


def _effects(run: Evaluation, server: Evaluation) -> dict[str, Effect]:
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
