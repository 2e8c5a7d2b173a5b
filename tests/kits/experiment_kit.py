"""Experiments of the small world: their file, and how they run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moslora.experiment.file import load_experiment
from moslora.experiment.study import Study
from moslora.runs.run import Run
from moslora.training import train_recipe

FILE = """
recipe:
  extends: {world}/recipe.yaml
  training: {{max_steps: 4, checkpoint_every: 1}}
  evaluation: {{limit: 6}}
arms:
  lora: methods/lora
  learned: {{adapter: {{mixer: {{init: orthogonal}}}}}}
learning_rates: {rates}
{search}
seeds: [0, 1]
contrast: [lora, learned]
outcome: log_probability
"""


def study(file: str, out: Path = Path("runs/e"), **options: Any) -> Study:
    loaded = load_experiment(file)
    return Study(loaded, out, loaded.chosen_arms(()), **options)


def train(arguments: Sequence[str], *, out: Path, **_: Any) -> None:
    """Training in this process, whatever number and environment of others is asked for."""
    train_recipe(Run(out).recipe_to_resume(arguments[2:]), out=out, resuming=True)


def results(out: Path) -> dict[str, tuple[bytes, ...]]:
    """Run -> adapter and answers, for the runs that are done."""
    found = {}
    for run in map(Run, sorted(out.glob("runs/*"))):
        if run.facts.get("experiment", {}).get("state") in ("trained", "scored"):
            files = (run.result / "adapter.safetensors", *run.path.glob("eval/*/predictions.jsonl"))
            found[run.name] = tuple(file.read_bytes() for file in files)
    return found
