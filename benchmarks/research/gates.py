"""What a mixer with a gate for each task forgets under the gates that answer questions, not under their mean.

    python -m benchmarks.research.gates runs/article-second --arm moelora
    python -m benchmarks.research.gates runs/forgetting --arm moelora-0.8 --against lora-0.8 --limit 256

The folder is an experiment's, with its runs and the base's answers. Each run of the arm reads the passages under the
gate of each task: some 7 minutes of one core for 256 passages of a run. What is done is kept in --work, and not done
again; a run that was stopped goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.commands import command
from benchmarks.tables import machine, markdown
from moslora.adapters.injection import task_names
from moslora.base.load import load_tokenizer
from moslora.compare.arms import Arm, all_runs, load_arms
from moslora.compare.compared_run import ComparedRun
from moslora.compare.comparison import compare_arms
from moslora.compare.contrast import Contrast
from moslora.data.sources import load_examples
from moslora.errors import UsageError
from moslora.evaluation import Request
from moslora.evaluation.evaluator import ModelWithQuestions
from moslora.evaluation.model import Local, Pairs, Wait
from moslora.experiment.tables import mean_in_words
from moslora.recipe import Recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation, read_evaluation
from moslora.runs.scores import MACRO

TEXTS = "passages"
OUTCOME = "nats_per_byte"
MEAN = "the mean gate"
ON_AVERAGE = "a task's, on average"


@dataclass(frozen=True)
class UnderGate(Local):
    """A model whose gates choose by ``gate``, whatever the task of the questions."""

    gate: str = ""

    def log_probabilities(
        self, questions: Sequence[Pairs], *, task: str | None, one_prompt: bool = False
    ) -> Wait[list[float]]:
        return super().log_probabilities(questions, task=self.gate, one_prompt=one_prompt)


def under_gates(run: ComparedRun, work: Path, limit: int | None) -> dict[str, ComparedRun]:
    """Gate -> the run with its answers to the first ``limit`` passages under the gate of a task."""
    trained = run.evaluation.run
    if trained is None:
        raise UsageError(f"{run.path}: no run; name an experiment's folder, not its tables")
    folder = open_adapter(trained.result)
    recipe: Recipe = folder.recipe
    (task,) = [task for task in recipe.questions.tasks if task.name == TEXTS]
    passages = load_examples(task, "test", source=recipe.questions.source)
    request = Request.of(recipe).with_overrides({"limit": limit or recipe.evaluation.limit})
    model = load_adapted(folder)
    asked = ModelWithQuestions.of(model, load_tokenizer(recipe.model), {TEXTS: passages}, request)
    local = asked.model
    found = {}
    for gate in task_names(model):
        answers = work / trained.name / gate
        gated = UnderGate(local.model, local.tokenizer, local.batch_tokens, gate=gate)
        asked.prepared.answer(gated, asked.prepared.open_journal(answers, {}))
        found[gate] = _with_texts(run, read_evaluation(answers).tasks[TEXTS])
        print(trained.name, gate, f"{nats(found[gate].tasks[TEXTS]):.4f}", flush=True)
    return found


def on_average(gated: Mapping[str, ComparedRun]) -> ComparedRun:
    """A run whose outcome of each passage is the mean over the gates."""
    runs = list(gated.values())
    columns = np.array([run.tasks[TEXTS].outcomes[OUTCOME] for run in runs])
    first = runs[0].tasks[TEXTS]
    return _with_texts(runs[0], replace(first, outcomes={OUTCOME: tuple(columns.mean(axis=0).tolist())}))


def _with_texts(run: ComparedRun, answers: TaskAnswers) -> ComparedRun:
    """The run with these answers to the passages, and none to other tasks."""
    return replace(run, evaluation=replace(run.evaluation, tasks={TEXTS: answers}))


def arms_by_gate(arm: Arm, work: Path, limit: int | None) -> dict[str, Arm]:
    """Gate -> the arm under it; also under the mean of all gates, as texts are usually read, and the gates' average."""
    by_seed: dict[Any, dict[str, ComparedRun]] = {}
    for seed, run in arm.runs.items():
        gated = under_gates(run, work, limit)
        asked = next(iter(gated.values())).tasks[TEXTS].ids
        mean = _with_texts(run, run.tasks[TEXTS].only(asked))
        by_seed[seed] = {MEAN: mean, **gated, ON_AVERAGE: on_average(gated)}
    gates = next(iter(by_seed.values()))
    return {gate: Arm(gate, {seed: runs[gate] for seed, runs in by_seed.items()}) for gate in gates}


def nats(answers: TaskAnswers) -> float:
    """Nats per byte, mean over the passages."""
    return fmean(answers.outcomes[OUTCOME])


def difference(against: Arm, arm: Arm) -> Contrast:
    """The arm against another in nats per byte of the passages that both have read."""
    return compare_arms([against, arm], outcome=OUTCOME, tasks=TEXTS).named[0]


def table(arms: Mapping[str, Arm], base: Evaluation, against: Arm | None) -> str:
    """What was lost under each gate: mean over seeds ± standard error; and against another arm, with an interval."""
    rows = [["gate", "nats per byte lost"]]
    if against is not None:
        rows[0].append(f"more than {against.name}")
    for gate, arm in arms.items():
        lost = []
        for run in arm.runs.values():
            answers = run.tasks[TEXTS]
            lost.append(nats(answers) - nats(base.tasks[TEXTS].only(answers.ids)))
        row = [gate, mean_in_words(lost, digits=4)]
        if against is not None:
            effect = difference(against, arm).effects[MACRO]
            low, high = effect.interval
            row.append(f"{effect.difference:+.4f} ({low:.4f} to {high:.4f})")
        rows.append([cell.replace("-", "−") for cell in row])
    return markdown(rows)


def main(
    folder: Path,
    *,
    arm: str = "moelora",
    against: str = "",
    limit: int | None = None,
    work: Path = ROOT / "runs" / "benchmarks" / "gates",
) -> None:
    arms = {each.name: each for each in load_arms([folder])}
    bases = [run.evaluation.base for run in all_runs([*arms.values()]) if run.evaluation.base is not None]
    if not bases:
        raise UsageError(f"{folder}: the answers of the base are not there; moslora eval RUN --base")
    by_gate = arms_by_gate(arms[arm], work, limit)
    print(machine(), table(by_gate, bases[0], arms.get(against)), sep="\n\n")


if __name__ == "__main__":
    command(main)
