"""The commands that write, in the small world, to be killed at each of their writes."""

import signal
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import moslora
from experiment_kit import train as train_here
from kill_kit import Command
from kill_kit import moslora as typed
from moslora.download import wheels
from moslora.errors import Interrupted
from moslora.experiment import one_run, reproduce
from moslora.recipe import load_recipe
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import PATIENT

SHORT = (
    "training.max_steps=2",
    "training.checkpoint_every=1",
    "training.keep_checkpoints=1",
    "training.validate_every=2",
    "training.log_every=1",
)
"""Two steps, each with a checkpoint, of which one is kept."""

CHOSEN = (*PATIENT, "training.checkpoint_every=3", "training.keep_checkpoints=1", "training.log_every=2")
"""A checkpoint is planned after the best step, and none after the last."""

EXPERIMENT = """
recipe:
  extends: {world}/recipe.yaml
  training: {{max_steps: 1, warmup_steps: 0}}
  evaluation: {{tasks: [boolq], limit: 2}}
arms:
  lora: methods/lora
  learned: {{adapter: {{mixer: {{init: orthogonal}}}}}}
learning_rates: {{lora: [3e-2], learned: [1e-2, 3e-2]}}
rate_seeds: [7]
seeds: [0]
contrast: [lora, learned]
outcome: log_probability
"""


@dataclass(frozen=True)
class _Steps:
    """What is done in the working folder, before a command or as one.

    Attributes:
        world: has model, data and recipe, and stays as it is.
    """

    world: Path

    @property
    def recipe(self) -> Path:
        return self.world / "recipe.yaml"

    def train(self) -> None:
        train_recipe(load_recipe(self.recipe, SHORT), out=Path("runs/one"))

    def stop_after_a_step(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("moslora.training.train.stop_requests", lambda: nullcontext([signal.SIGTERM]))
            with suppress(Interrupted):
                self.train()
        assert [path.name for path in Run(Path("runs/one")).checkpoints] == ["step-1"]

    def export(self) -> None:
        self.train()
        _expect_zero(typed("export", "runs/one", "--out", "lora"))

    def score(self) -> None:
        self.train()
        _expect_zero(typed("eval", "runs/one", "--limit", 4))

    def train_and_write_rows(self) -> None:
        self.train()
        rows = [f'{{"text": "rain {n}"}}\n' for n in range(3)]
        Path("rows.jsonl").write_text("".join(rows), encoding="utf-8")
        task = "tasks: {wet: {test: rows.jsonl, question: text, options: [a, b]}}"
        Path("wet.yaml").write_text(task, encoding="utf-8")

    def report_and_score_again(self) -> None:
        self.score()
        _expect_zero(typed("report", "runs/one"))
        _expect_zero(typed("eval", "runs/one", "--limit", 5, "--base"))

    def plan(self) -> None:
        Path("e.yaml").write_text(EXPERIMENT.format(world=self.world), encoding="utf-8")

    def experiment(self) -> int:
        one_run.train_in_processes = train_here  # type: ignore[attr-defined]
        return typed("experiment", "e.yaml", "all", "--any-rate")()

    def plan_and_pack(self) -> None:
        self.plan()
        _expect_zero(self.experiment)
        _expect_zero(typed("experiment", "e.yaml", "--pack", "packed"))

    def reproduce_run(self) -> int:
        reproduce.train_in_processes = train_here  # type: ignore[attr-defined]
        return typed("reproduce", "runs/one")()

    def save(self, fill: float) -> int:
        """An adapter of the library's, whose B is ``fill`` everywhere."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(self.world / "model", dtype=torch.float32)
        moslora.inject(model, rank=2, alpha=2, target_modules=["q_proj"], mixer={"kind": "dense"})
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("lora_b"):
                    weight.fill_(fill)
        moslora.save(model, "mine")
        return 0


def commands(world: Path) -> dict[str, Command]:
    """By name. ``world`` has model, data and recipe, and stays as it is."""
    steps = _Steps(world)
    train_short = ("train", steps.recipe, *SHORT, "--out", "runs/one")
    train_chosen = ("train", steps.recipe, *CHOSEN, "--out", "runs/one")
    base = ("eval", world / "model", "--source", world / "data", "--tasks", "boolq,obqa", "--limit", 4)
    every = [
        Command("train", typed(*train_short), advised=True),
        Command("train --resume, from nothing", typed(*train_short, "--resume")),
        Command("train --resume, to the best", typed(*train_chosen, "--resume")),
        Command("train --resume, after a stop", typed("train", "runs/one", "--resume"), steps.stop_after_a_step),
        Command("eval", typed("eval", "runs/one", "--limit", 4), steps.train),
        Command("eval --base", typed("eval", "runs/one", "--base", "--limit", 4), steps.score),
        Command("eval MODEL", typed(*base)),
        Command(
            "predict", typed("predict", "runs/one", "rows.jsonl", "--task", "wet.yaml"), steps.train_and_write_rows
        ),
        Command("experiment", steps.experiment, steps.plan),
        Command("experiment --pack", typed("experiment", "e.yaml", "--pack", "packed"), steps.plan_and_pack),
        Command("reproduce", steps.reproduce_run, steps.train),
        Command("merge", typed("merge", "runs/one"), steps.score),
        Command("export", typed("export", "runs/one"), steps.train),
        Command("strength", typed("strength", "runs/one", "--set", "0.8", "--out", "runs/weaker"), steps.train),
        Command("import", typed("import", "lora", "--dtype", "float32"), steps.export),
        Command("report", typed("report", "runs/one"), steps.score),
        Command("report over an older one", typed("report", "runs/one"), steps.report_and_score_again),
        Command("recipes copy", typed("recipes", "copy", "methods/lora", ".")),
        Command("moslora.save over an older one", partial(steps.save, 2.0), partial(steps.save, 1.0)),
        Command("a download", _download),
    ]
    return {command.name: command for command in every}


def _expect_zero(act: Callable[[], int]) -> None:
    assert act() == 0


def _download() -> int:
    """A wheel, which pip's stand-in writes."""
    content = bytes(range(256)) * 40
    wheel = wheels.Wheel("thing", "1.0", "", megabytes=0)

    def download(wanted: wheels.Wheel, path: Path, *, shelf: Path) -> None:
        path.write_bytes(content)

    wheels._download = download  # type: ignore[assignment]
    wheels._intact = lambda path, wanted: path.exists() and path.read_bytes() == content  # type: ignore[assignment]
    return int(wheels.fetch_wheel(wheel).read_bytes() != content)
