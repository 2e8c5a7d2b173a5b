"""What MOELoRA forgets under the gate of each task, and not under the mean of its gates alone.

    python -m benchmarks.research.gates                       # at 0.008: some 80 minutes on one core
    python -m benchmarks.research.gates --arm moelora-low     # at 0.004

The arm's runs of `article-second` are trained again, and each measures the passages under every gate. What is done is
kept in --work, and not done again; a training that was stopped goes on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from benchmarks import ROOT
from benchmarks.commands import command
from benchmarks.tables import machine, markdown
from moslora.adapters.injection import task_names
from moslora.base.load import load_base, load_tokenizer
from moslora.data.sources import load_examples
from moslora.evaluation import Request
from moslora.evaluation.batches import batch_budget, blocks
from moslora.evaluation.model import Local
from moslora.evaluation.scorers import make_encoder, make_scorer
from moslora.experiment.file import PlannedRun, load_experiment
from moslora.experiment.tables import mean_in_words
from moslora.files import write_json
from moslora.recipe import Recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe

EXPERIMENT = "article-second"
TEXTS = "passages"

RATES = {"moelora": 8e-3, "moelora-low": 4e-3}
"""The arms, with the rates at which they were scored."""

MEAN = "the mean gate"
BASE = "the base"


def nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, gate: str | None) -> float:
    """Nats per byte of the passages, mean over them, under the gate of a task; ``None`` for the mean of all gates."""
    (task,) = [task for task in recipe.questions.tasks if task.name == TEXTS]
    passages = load_examples(task, "test", source=recipe.questions.source)
    request = Request.of(recipe)
    scorer: Any = make_scorer(passages[0], make_encoder(model.config, tokenizer, request), request)
    local = Local(model, tokenizer, request.batch_tokens or batch_budget(model.device))
    found = []
    for block in blocks(passages, limit=recipe.evaluation.limit, exact=False):
        questions = [scorer.encode(passage) for passage in block.computed]
        (outputs,) = local.log_probabilities([question.pairs for question in questions], task=gate)()
        for place, question in enumerate(questions):
            if question.example in block.wanted:
                prediction = scorer.read(question, outputs[place])
                found.append(-prediction.scores[0] / prediction.bytes)
    return fmean(found)


def measured(planned: PlannedRun, work: Path) -> dict[str, float]:
    """Gate -> nats per byte of one run, which is trained first; and those of its base."""
    kept = work / f"{planned.name}.json"
    if not kept.exists():
        recipe = planned.recipe
        run = work / planned.name
        if not (run / "adapter").exists():
            train_recipe(recipe, out=run, resuming=(run / "run.json").exists())
        tokenizer = load_tokenizer(recipe.model)
        model = load_adapted(open_adapter(run / "adapter"))
        gates = {MEAN: None, **{task: task for task in task_names(model)}}
        found = {BASE: nats(load_base(recipe.model), tokenizer, recipe, None)}
        for name, gate in gates.items():
            found[name] = nats(model, tokenizer, recipe, gate)
            print(planned.name, name, f"{found[name]:.4f}", flush=True)
        write_json(kept, found)
    found_before: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return found_before


def table(runs: Sequence[dict[str, float]]) -> str:
    """What was lost under each gate and, on average, under those of the tasks, over the seeds."""
    gates = [gate for gate in runs[0] if gate != BASE]
    lost = {gate: [run[gate] - run[BASE] for run in runs] for gate in gates}
    of_tasks = [lost[gate] for gate in gates if gate != MEAN]
    lost["a task's, on average"] = [fmean(of_run) for of_run in zip(*of_tasks, strict=True)]
    rows = [["gate", "nats per byte lost"]]
    rows += [[gate, mean_in_words(of_runs, digits=4)] for gate, of_runs in lost.items()]
    return markdown(rows)


def main(*, arm: str = "moelora", seeds: int = 6, work: Path = ROOT / "runs" / "benchmarks" / "gates") -> None:
    planned = load_experiment(EXPERIMENT).planned([(arm, RATES[arm])], scored=True)[:seeds]
    work.mkdir(parents=True, exist_ok=True)
    runs = [measured(one, work) for one in planned]
    print(machine(), table(runs), sep="\n\n")


if __name__ == "__main__":
    command(main, arm=RATES)
