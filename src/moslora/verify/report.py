"""What a verification has found: the lines that are printed, and the same as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moslora.compare.arms import cluster_codes
from moslora.compare.statistics import MACRO, Effect, effects
from moslora.errors import counted
from moslora.files import write_text
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES
from moslora.verify.answers import begins_alike, chosen_by_id
from moslora.verify.fit import Fit
from moslora.verify.questions import AskedQuestions
from moslora.verify.verdict import Verdict
from moslora.verify.ways import Completion

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
        same_texts: texts that begin as the run's; ``None`` where none are written.
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
    same_texts: int | None
    how: str
    effects: Mapping[str, Effect]
    verdict: Verdict = NOT_YET
    fit: Fit | None = None
    tolerance: float = 0.0
    hint: str = ""
    server: str = ""
    model: str = ""

    @classmethod
    def of(cls, asked: AskedQuestions, server: Evaluation, *, way: Completion) -> "Report":
        """The numbers of the server's answers; no verdict yet."""
        found = chosen_by_id(server)
        run = chosen_by_id(asked.run)
        same = sum(found[id] == run[id] for id in found)
        return cls(
            evaluation=asked.run.folder,
            asked=len(asked.questions),
            answered=len(found),
            same=same,
            same_texts=_same_texts(asked.run, server),
            how=f"asked as {way.name}, {way.reading.says}",
            effects=_effects(asked.run, server),
        )

    @property
    def lines(self) -> list[str]:
        """What is printed, the verdict last."""
        found = [
            f"{self.server} {self.model}".strip() + f" against {self.evaluation}",
            f"{counted(self.asked, 'question')} {self.how}",
            f"same answer to {self.same} of {self.answered}",
        ]
        if self.answered < self.asked:
            found.append(f"{self.asked - self.answered} left out: refused, or not told in whole")
        if self.same_texts is not None:
            found.append(f"same text in {self.same_texts} of {self.answered}")
        for name, effect in self.effects.items():
            found.append(_difference(name, effect))
        if self.hint:
            found.append(f"the base has not answered these questions; it tells more: {self.hint}")
        found.append(self.verdict_with_cost)
        return found

    @property
    def verdict_with_cost(self) -> str:
        """The verdict, of a quantisation with the accuracy that it costs."""
        accuracy = self.effects.get("accuracy")
        if self.verdict.kind != "quantised" or accuracy is None:
            return self.verdict.says
        outcome = OUTCOMES["accuracy"]
        change = f"{outcome.change(accuracy.difference)} points ({outcome.range(accuracy.interval)})"
        return f"{self.verdict.says}; accuracy {change}"

    def to_json(self) -> str:
        """All numbers, for a program."""
        fit = None
        if self.fit is not None:
            fit = asdict(self.fit)
        effects = {}
        for name, effect in self.effects.items():
            effects[name] = {"difference": effect.difference, "interval": effect.interval}
        values: dict[str, Any] = {
            "verdict": self.verdict.kind,
            "says": self.verdict_with_cost,
            "passed": self.verdict.passed,
            "server": self.server,
            "model": self.model,
            "evaluation": str(self.evaluation),
            "how": self.how,
            "asked": self.asked,
            "answered": self.answered,
            "same": self.same,
            "same_texts": self.same_texts,
            "effects": effects,
            "fit": fit,
            "tolerance": self.tolerance,
            "hint": self.hint,
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> None:
        write_text(folder / REPORT, self.to_json())


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


def _same_texts(run: Evaluation, server: Evaluation) -> int | None:
    """Texts that are the run's, which ends where its answer is decided; ``None`` if the run has written none."""
    same = 0
    written = 0
    for task, answers in server.tasks.items():
        own = dict(zip(run.tasks[task].ids, run.tasks[task].texts, strict=False))
        for id, text in zip(answers.ids, answers.texts, strict=False):
            ours = own.get(id)
            if ours is None or text is None:
                continue
            written += 1
            same += begins_alike(text, ours)
    if not written:
        return None
    return same
