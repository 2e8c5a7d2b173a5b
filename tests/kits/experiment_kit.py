"""Experiments of the small world: their file, and how they run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from moslora.experiment import one_run
from moslora.experiment.file import load_experiment
from moslora.experiment.study import Study
from moslora.runs.run import Run
from moslora.training.session import train_run

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
    train_run(Run(out).recipe_to_resume(arguments[2:]), Run(out), resuming=True)


def two_runs(world: Path, *, steps: int) -> Path:
    """Writes e.yaml, an experiment of two runs with so many steps. Its folder, run one after the other, is returned."""
    text = FILE.format(world=world, rates="[3e-2]", search="").replace("max_steps: 4", f"max_steps: {steps}")
    Path("e.yaml").write_text(text.replace("seeds: [0, 1]", "seeds: [0]"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_run, "train_in_processes", train)
        study("e.yaml", Path("alone")).run()
    return Path("alone")


def trainers() -> dict[str, psutil.Process]:
    """Run -> the process that trains it, below this one."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if "train" in words and "--resume" in words:
            found[Path(words[words.index("train") + 1]).name] = process
    return found


def saved_of(training: Mapping[str, psutil.Process], out: Path) -> dict[str, psutil.Process]:
    """Those of the runs in ``out`` that have a checkpoint."""
    return {name: process for name, process in training.items() if [*out.glob(f"runs/{name}/checkpoints/step-[1-9]*")]}


def results(out: Path) -> dict[str, tuple[bytes, ...]]:
    """Run -> adapter and answers, for the runs that are done."""
    found = {}
    for path in sorted(out.glob("runs/*")):
        run = Run(path)
        if run.facts.get("experiment", {}).get("state") in ("trained", "scored"):
            files = (run.result / "adapter.safetensors", *run.path.glob("eval/*/predictions.jsonl"))
            found[run.name] = tuple(file.read_bytes() for file in files)
    return found
