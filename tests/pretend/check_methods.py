"""Steps of every method on the pretend device: as on the CPU, one wait each, and few operations.

``pytest -rP tests/pretend/check_methods.py`` ends with a table of them.
"""

import pytest
from accelerate import Accelerator

from moslora.adapters import adapter_state_dict
from moslora.recipe import load_recipe
from moslora.training.loop import train
from moslora.training.prepare import prepare
from pretend_kit import on_cpu, watch
from recipe_kit import METHODS

SMALL = {
    "methods/adalora": ("training.rank_budget.target_rank=4", "training.rank_budget.warmup_share=0.1"),
    "methods/flora": ("adapter.rank_out=4",),
}
FEW = ("adapter.rank=8", "training.epochs=null", "training.max_steps=8", "training.warmup_steps=0")
ALONE = "training.validate_every=1"
"""No step begins before the one before it has ended."""

RATE = 1e-3

MOST = {"methods/lora": 285, "methods/moslora": 300}
"""Operations of a step of one micro-batch, with six adapters in two layers, and dropout."""

counted: dict[str, int] = {}


def steps(method, world, folder, *overrides, count):
    """The adapter after as many steps, what the last of them did, and the losses and norms of all."""
    (folder / "recipe.yaml").write_text(f"extends: [{world / 'recipe.yaml'}, {method}]\n")
    settings = (*FEW, ALONE, "training.log_every=1", *SMALL.get(method, ()), *overrides)
    recipe = load_recipe(folder / "recipe.yaml", settings)
    parts, _ = prepare(Accelerator(mixed_precision="no"), recipe)
    logged = []
    told = {
        "report": lambda _, loss, grad_norm, **others: logged.extend((loss, grad_norm)),
        "checkpoint": lambda _: None,
        "validate": lambda _: None,
        "stop_requested": lambda: True,
    }
    for step in range(count):
        with watch() as seen:
            train(parts, first_step=step, **told)
    adapter = {key: value.detach().cpu() for key, value in adapter_state_dict(parts.model).items()}
    return adapter, seen, logged


def refuse_waits(seen):
    """But for the one that reads the losses and the norm."""
    waits = list(seen.waits.elements())
    assert len(waits) == 1 and waits[0].startswith("synchronize in training/loop.py"), waits


@pytest.mark.parametrize("method", METHODS)
def test_it_steps_as_on_the_cpu(world, tmp_path, method):
    """Without dropout, where what rows begin with is laid once."""
    few = ("training.global_batch_size=4", f"training.learning_rate={RATE}", "adapter.dropout=0")
    found, seen, logged = steps(method, world, tmp_path, *few, count=2)
    expected, none, same = on_cpu(steps, method, world, tmp_path, *few, count=2)
    assert not none.operations and logged == pytest.approx(same, rel=1e-4)
    far = {key: float((found[key] - value).abs().max()) for key, value in expected.items()}
    assert max(far.values()) < RATE / 5, far
    refuse_waits(seen)
    counted[method] = seen.operations.total()


@pytest.mark.parametrize("method", ["methods/lora", "methods/moslora", "methods/adalora", "methods/lora-moe-topk"])
def test_it_waits_once_a_step_with_dropout_in_bfloat16(world, tmp_path, method):
    few = ("model.dtype=bfloat16", "training.micro_batch_tokens=null")
    _, seen, _ = steps(method, world, tmp_path, *few, count=2)
    refuse_waits(seen)
    counted[f"{method}, bfloat16"] = seen.operations.total()
    assert seen.operations.total() <= MOST.get(method, 1000)


def test_the_table():
    print("operations  waits  of a step of")
    for method, operations in counted.items():
        print(f"{operations:10}  {1:5}  {method}")
