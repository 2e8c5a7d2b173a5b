"""What MOELoRA forgets under the gate of each task, and not under the mean of its gates alone.

    python -m benchmarks.article.gates                       # at 0.008: about an hour on an idle core
    python -m benchmarks.article.gates --arm moelora-low     # at 0.004

The arm's runs of `article-second` are trained again, and each measures the passages under every gate. What is done is
kept in --work, and not done again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from benchmarks import ROOT
from benchmarks.tables import machine, markdown
from moslora.adapters import describe_task
from moslora.adapters.injection import task_names
from moslora.base.load import load_base, load_tokenizer
from moslora.data.sources import load_examples
from moslora.evaluation import Request
from moslora.evaluation.batches import blocks
from moslora.evaluation.scorers import make_scorer, scorer_of
from moslora.experiment.file import Planned, load_experiment
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
BASE = "base"


def nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, gate: str | None) -> float:
    """Nats per byte of the passages, mean over them, under the gate of a task; ``None`` for the mean of all gates."""
    (task,) = [task for task in recipe.questions.tasks if task.name == TEXTS]
    passages = load_examples(task, "test", source=recipe.questions.source)
    scorer: Any = scorer_of(passages[0], make_scorer(model, tokenizer, Request.of(recipe)))
    describe_task(model, gate)
    found = []
    for block in blocks(passages, limit=recipe.evaluation.limit, exact=False):
        questions = [scorer.encode(passage) for passage in block.computed]
        with torch.inference_mode():
            outputs = scorer.in_batches(questions, tokens=scorer.batch_tokens)()
        for passage, question, output in zip(block.computed, questions, outputs, strict=True):
            if passage in block.wanted:
                prediction = scorer.read(question, output)
                found.append(-prediction.scores[0] / prediction.bytes)
    return fmean(found)


def measured(planned: Planned, work: Path) -> dict[str, float]:
    """Gate -> nats per byte of one run, which is trained first."""
    kept = work / f"{planned.name}.json"
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    run = work / planned.name
    if not (run / "adapter").exists():
        train_recipe(planned.recipe, out=run)
    model = load_adapted(open_adapter(run / "adapter"))
    tokenizer = load_tokenizer(planned.recipe.model)
    found = {MEAN: nats(model, tokenizer, planned.recipe, None)}
    for task in task_names(model):
        found[task] = nats(model, tokenizer, planned.recipe, task)
        print(planned.name, task, f"{found[task]:.4f}", flush=True)
    write_json(kept, found)
    return found


def of_base(recipe: Recipe, work: Path) -> float:
    """Nats per byte without an adapter."""
    kept = work / f"{BASE}.json"
    if not kept.exists():
        model = load_base(recipe.model)
        write_json(kept, {BASE: nats(model, load_tokenizer(recipe.model), recipe, None)})
    found: float = json.loads(kept.read_text(encoding="utf-8"))[BASE]
    return found


def table(runs: Sequence[dict[str, float]], base: float) -> str:
    """What was lost under each gate, over the seeds."""
    rows = [["gate", "nats per byte lost"]]
    for gate in runs[0]:
        rows.append([gate, mean_in_words([run[gate] - base for run in runs], digits=4)])
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=RATES, default="moelora", help="%(default)s")
    parser.add_argument("--seeds", type=int, default=6, help="how many of the experiment's, in its order")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks" / "gates", help="for the files")
    given = parser.parse_args(arguments)
    planned = load_experiment(EXPERIMENT).planned([(given.arm, RATES[given.arm])], scored=True)[: given.seeds]
    given.work.mkdir(parents=True, exist_ok=True)
    base = of_base(planned[0].recipe, given.work)
    runs = [measured(one, given.work) for one in planned]
    print(machine())
    print(table(runs, base))
    return 0


if __name__ == "__main__":
    sys.exit(main())
