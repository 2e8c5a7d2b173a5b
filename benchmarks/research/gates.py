"""What a mixer with a gate for each task forgets under the gates that answer questions, not under their mean.

    python -m benchmarks.research.gates runs/article-second --arm moelora
    python -m benchmarks.research.gates runs/forgetting --arm moelora-0.8 --against lora-0.8 --limit 256
        --without-gate obqa                 # how much hangs on one gate

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
from benchmarks.research.rates import difference_cell, effect_of
from benchmarks.tables import machine, markdown
from moslora.adapters.injection import task_names
from moslora.base.load import load_tokenizer
from moslora.compare.arms import Arm, all_runs, load_arms
from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.gains import shared_base
from moslora.data.sources import load_examples
from moslora.errors import UsageError
from moslora.evaluation import Request
from moslora.evaluation.evaluator import ModelWithQuestions
from moslora.evaluation.model import Local, Pairs, Wait
from moslora.experiment.tables import mean_in_words
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation, read_evaluation
from moslora.runs.outcomes import OUTCOMES

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
    recipe = folder.recipe
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


def arms_by_gate(arm: Arm, work: Path, limit: int | None, *, without: str) -> dict[str, Arm]:
    """Gate -> the arm under it, but for the gate ``without``; also under the mean of all gates, as texts are usually
    read, and the average over the gates."""
    by_seed: dict[Any, dict[str, ComparedRun]] = {}
    for seed, run in arm.runs.items():
        gated = under_gates(run, work, limit)
        gated.pop(without, None)
        asked = next(iter(gated.values())).tasks[TEXTS].ids
        by_seed[seed] = {MEAN: run.only({TEXTS: asked}), **gated, ON_AVERAGE: on_average(gated)}
    gates = next(iter(by_seed.values()))
    return {gate: Arm(gate, {seed: runs[gate] for seed, runs in by_seed.items()}) for gate in gates}


def nats(answers: TaskAnswers) -> float:
    """Nats per byte, mean over the passages."""
    return fmean(answers.outcomes[OUTCOME])


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
        row = [gate, mean_in_words(lost, digits=OUTCOMES[OUTCOME].fine)]
        if against is not None:
            row.append(difference_cell(effect_of(against, arm, OUTCOME, TEXTS), OUTCOMES[OUTCOME], bold=False))
        rows.append([cell.replace("-", "−") for cell in row])
    return markdown(rows)


def main(
    folder: Path,
    *,
    arm: str = "moelora",
    against: str = "",
    limit: int | None = None,
    without_gate: str = "",
    work: Path = ROOT / "runs" / "benchmarks" / "gates",
) -> None:
    arms = {each.name: each for each in load_arms([folder])}
    base = shared_base(evaluations_of(all_runs([*arms.values()])))
    if base is None:
        raise UsageError(f"{folder}: the answers of the base are not there; moslora eval RUN --base")
    by_gate = arms_by_gate(arms[arm], work, limit, without=without_gate)
    print(machine(), table(by_gate, base, arms[against] if against else None), sep="\n\n")


if __name__ == "__main__":
    command(main)
