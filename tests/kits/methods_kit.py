"""Short runs of the small world, one of each built-in method, ours and PEFT's, each made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moslora.adapters import describe_batch, task_names
from moslora.recipe import Recipe, list_recipes, load_recipe
from moslora.training import train_recipe
from moslora.training.train import Training
from recipe_kit import PEFT

METHODS = [name for name, _ in list_recipes() if name.startswith("methods/")]
SMALL = {
    "methods/adalora": ("training.rank_budget.target_rank=4", "training.rank_budget.warmup_share=0.2"),
    "methods/flora": ("adapter.rank_out=4",),
}
"""Method -> what has to shrink with the rank of 8; FLoRA's core is rectangular, its recipe's option."""

CHOSEN = ("c3a", "dora", "hra", "ia3", "ln-tuning", "lora", "miss", "oft", "randlora", "shira", "vblora", "vera")
PEFT_METHODS = [f"peft/{name}" for name in CHOSEN]
"""Of PEFT's methods, those that are trained."""

BUDGET = (
    "adapter.mixer={kind: diagonal, orthogonality: 0.1}",
    "training.rank_budget={target_rank: 2, warmup_share: 0.4, final_share: 0.2}",
    "training.epochs=null",
    "training.max_steps=10",
    "training.log_every=1",
)
"""6 layers of rank 4, 10 updates, the first entries gone after update 5, the choice fixed after update 8."""

IDS = torch.arange(3, 27).view(2, 12)


@dataclass(frozen=True)
class Done:
    """A finished run, and what its model said at the end, before it was saved."""

    out: Path
    recipe: Recipe
    logits: Tensor


def logits_of(model: nn.Module, tasks: tuple[str, ...] = ("boolq", "obqa")) -> Tensor:
    was_training = model.training
    names = task_names(model)
    numbers = [0] * len(tasks)
    if names:
        numbers = [names.index(task) for task in tasks]
    describe_batch(model.eval(), tasks=torch.tensor(numbers))
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    model.train(was_training)
    return logits


def recipe_of(method: str, world: Path, folder: Path, *overrides: str) -> Recipe:
    """The small world's recipe with a method's: 8 updates of ours with a checkpoint after every third, 4 of PEFT's with
    one after every second."""
    file = folder / "recipe.yaml"
    file.write_text(f"extends: {world / 'recipe.yaml'}\n")
    short = ["training.epochs=null", "training.log_every=1"]
    if method in PEFT:
        short += ["training.max_steps=4", "training.checkpoint_every=2", *PEFT[method]]
    else:
        short += [f"extends={method}", "training.max_steps=8", "training.checkpoint_every=3", "adapter.rank=8"]
    return load_recipe(file, [*short, *SMALL.get(method, ()), *overrides])


def finish(recipe: Recipe, out: Path) -> Done:
    """Trains from the beginning to the end."""
    said: list[Tensor] = []
    save = Training._save_result

    def listening(training: Training, steps: int) -> None:
        said.append(logits_of(training.state.model))
        save(training, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_save_result", listening)
        train_recipe(recipe, out=out)
    return Done(out, recipe, said[0])
