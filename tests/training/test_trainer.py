"""A whole training against PEFT's LoRA under the Trainer of transformers: the same rows, rates and clipping."""

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator

from moslora.adapters import inject, named_adapters
from moslora.base.adapted import with_adapters
from moslora.base.check import choose_engine
from moslora.base.engines import engine_of
from moslora.data.encode import Encoded
from moslora.data.steps import StepPlan
from moslora.recipe import Recipe, TrainingSection
from moslora.training.loop import Parts, train
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer
from reference import PROJECTIONS, tiny_llama
from trainer_kit import under_the_trainer

STEPS = 20
ROWS = 16


class Losses:
    """Keeps the loss and the gradient's norm of every step."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def step(self, step: int, **values: float) -> None:
        self.rows.append((values["loss"], values["grad_norm"]))


def rows(number: int) -> list[Encoded]:
    """Rows of a small language, in which a token's successor is nearly certain, with labels on their second half."""
    draw = random.Random(0)
    found = []
    for n in range(number):
        ids = [draw.randrange(1, 60)]
        while len(ids) < 8 + n % 13:
            ids.append((ids[-1] * 7 + draw.choice((1, 1, 1, 2))) % 60 + 1)
        begin = len(ids) // 2
        found.append(Encoded(str(n), "boolq", ids, [-100] * begin + ids[begin:], truncated=False))
    return found


@pytest.mark.parametrize(
    ("by", "micro_batch_tokens"), [("us", 10_000), ("us", 50), ("us, by transformers", 50), ("PEFT", 50)]
)
def test_twenty_steps_have_the_losses_of_peft_under_the_trainer(
    tmp_path: Path, by: str, micro_batch_tokens: int
) -> None:
    """Float32, no dropout, 20 steps that learn: all losses and norms to 1e-4, though the Trainer cuts and pads its own
    micro-batches. Our loop trains our LoRA, by either engine, or PEFT's from the same start, and so all to the same."""
    plan = StepPlan(rows=STEPS * ROWS, global_batch_size=ROWS, epochs=1, max_steps=None, seed=3)
    data = rows(plan.rows)
    settings = TrainingSection(learning_rate=1e-2, warmup_steps=4, weight_decay=0.1, max_grad_norm=0.5, log_every=1)
    base: Any = tiny_llama(dtype=torch.float32)
    theirs = peft.get_peft_model(
        tiny_llama(dtype=torch.float32), peft.LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS)
    )

    inject(base, rank=4, alpha=8, mixer={"kind": "identity"}, target_modules=PROJECTIONS)
    for name, layer in named_adapters(base):
        theirs.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.data.copy_(layer.lora_a)
    if by == "PEFT":
        base = tiny_llama(dtype=torch.float32)
        method = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
        adapter = {"target_modules": list(PROJECTIONS), "peft": method}
        recipe = Recipe.model_validate({"name": "any", "model": {"name": "any"}, "adapter": adapter})
        base = with_adapters(base, recipe, state=peft.get_peft_model_state_dict(theirs))
    if by != "us":
        choose_engine(base.eval(), "transformers")
        assert engine_of(base).pads
    ours = Losses()
    parts = Parts(
        accelerator=Accelerator(cpu=True),
        settings=settings,
        model=base,
        objective=LabelLoss(base),
        optimizer=build_optimizer(base, settings),
        scaler=torch.amp.GradScaler(enabled=False),
        rows=data,
        plan=plan,
        micro_batch_tokens=micro_batch_tokens,
    )
    train(
        parts,
        first_step=0,
        report=ours.step,
        checkpoint=lambda step: None,
        validate=lambda step: False,
        stop_requested=lambda: False,
    )

    ordered: list[Encoded] = []
    for step in range(len(plan)):
        ordered += [data[row] for row in plan[step]]
    expected = under_the_trainer(
        theirs,
        ordered,
        tmp_path,
        rows_per_step=ROWS,
        learning_rate=1e-2,
        warmup_steps=4,
        weight_decay=0.1,
        max_grad_norm=0.5,
    )
    assert len(ours.rows) == len(expected) == STEPS
    assert expected[-1][0] < 0.95 * expected[0][0]
    for mine, other in zip(ours.rows, expected, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
