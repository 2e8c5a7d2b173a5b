"""The commands that write, in the small world, to be killed at each of their writes."""

import signal
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import moslora
from experiment_kit import train
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


def commands(world: Path) -> dict[str, Command]:
    """By name. ``world`` has model, data and recipe, and stays as it is."""
    recipe = world / "recipe.yaml"
    train_words = ("train", recipe, *SHORT, "--out", "runs/one")

    def trained() -> None:
        train_recipe(load_recipe(recipe, SHORT), out=Path("runs/one"))

    def stopped() -> None:
        """After the first step."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("moslora.training.train.stop_requests", lambda: nullcontext([signal.SIGTERM]))
            with suppress(Interrupted):
                trained()
        assert [path.name for path in Run(Path("runs/one")).checkpoints] == ["step-1"]

    def exported() -> None:
        trained()
        _expect_zero(typed("export", "runs/one", "--out", "lora"))

    def scored() -> None:
        trained()
        _expect_zero(typed("eval", "runs/one", "--limit", 4))

    def reported() -> None:
        scored()
        _expect_zero(typed("report", "runs/one"))
        _expect_zero(typed("eval", "runs/one", "--limit", 5, "--base"))

    def planned() -> None:
        Path("e.yaml").write_text(EXPERIMENT.format(world=world), encoding="utf-8")

    def experiment() -> int:
        one_run.train_in_processes = train  # type: ignore[attr-defined]
        return typed("experiment", "e.yaml", "all", "--any-rate")()

    def packed() -> None:
        planned()
        assert experiment() == 0
        _expect_zero(typed("experiment", "e.yaml", "--pack", "packed"))

    def again() -> int:
        reproduce.train_in_processes = train  # type: ignore[attr-defined]
        return typed("reproduce", "runs/one")()

    def saved(fill: float) -> Callable[[], int]:
        def save() -> int:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
            moslora.inject(model, rank=2, alpha=2, target_modules=["q_proj"], mixer={"kind": "dense"})
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name.endswith("lora_b"):
                        weight.fill_(fill)
            moslora.save(model, "mine")
            return 0

        return save

    every = [
        Command("train", typed(*train_words), advised=True),
        Command("train --resume, from nothing", typed(*train_words, "--resume")),
        Command("train --resume, to the best", typed("train", recipe, *CHOSEN, "--out", "runs/one", "--resume")),
        Command("train --resume, after a stop", typed("train", "runs/one", "--resume"), stopped),
        Command("eval", typed("eval", "runs/one", "--limit", 4), trained),
        Command("eval --base", typed("eval", "runs/one", "--base", "--limit", 4), scored),
        Command("eval MODEL", typed("eval", world / "model", "--source", world / "data", "--limit", 4, *_OWN_TASKS)),
        Command("experiment", experiment, planned),
        Command("experiment --pack", typed("experiment", "e.yaml", "--pack", "packed"), packed),
        Command("reproduce", again, trained),
        Command("merge", typed("merge", "runs/one"), scored),
        Command("export", typed("export", "runs/one"), trained),
        Command("import", typed("import", "lora", "--dtype", "float32"), exported),
        Command("report", typed("report", "runs/one"), scored),
        Command("report over an older one", typed("report", "runs/one"), reported),
        Command("recipes copy", typed("recipes", "copy", "methods/lora", ".")),
        Command("moslora.save over an older one", saved(2.0), saved(1.0)),
        Command("a download", _download),
    ]
    return {command.name: command for command in every}


_OWN_TASKS = ("--tasks", "boolq,obqa")


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
    return 0 if wheels.fetch_wheel(wheel).read_bytes() == content else 1
