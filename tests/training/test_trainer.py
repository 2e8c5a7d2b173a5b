"""A whole training against PEFT's LoRA under the Trainer of transformers: the same rows, rates and clipping."""

import random

import peft
import pytest
import torch
from accelerate import Accelerator

from chat_kit import MARKED, conversations, marked_labels, tokenizer_of
from moslora.adapters import inject, named_adapters
from moslora.base.adapted import with_adapters
from moslora.base.engine_choice import choose_engine
from moslora.base.engines import engine_of
from moslora.data.encode import Encoded, Encoder, encode_examples
from moslora.data.prepared import RowTable
from moslora.data.steps import StepPlan
from moslora.prompts.formats import make_format
from moslora.recipe import Recipe, TrainingSection
from moslora.tasks import Conversation, Turn
from moslora.training.loop import TrainState, train
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer
from reference import PROJECTIONS, tiny_llama
from trainer_kit import under_the_trainer

STEPS = 20
ROWS = 16


class Losses:
    """Keeps the loss and the gradient's norm of every step."""

    def __init__(self):
        self.rows = []

    def step(self, step, **values):
        self.rows.append((values["loss"], values["grad_norm"]))


def rows(number):
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


def talks(number):
    """Conversations as rows of a run, and with the labels that transformers gives them by a template with marks."""
    tokenizer = tokenizer_of("Qwen3")
    examples = []
    theirs = []
    for n, messages in enumerate(conversations(number)):
        examples.append(Conversation.of(str(n), [Turn(**message) for message in messages]))
        ids, labels = marked_labels(messages, tokenizer, MARKED["Qwen3"])
        theirs.append(Encoded(str(n), "instruction", ids, labels, truncated=False))
    encoder = Encoder(tokenizer, max_length=None)
    ours = encode_examples(examples, make_format("chat", tokenizer), encoder, loss_on="response")
    return list(RowTable.of(ours)), theirs


@pytest.mark.parametrize(
    ("by", "micro_batch_tokens", "said"),
    [
        *(("us", 10_000, False), ("us", 50, False), ("us, by transformers", 50, False), ("PEFT", 50, False)),
        *(("us", 2_000, True), ("us, by transformers", 2_000, True)),
    ],
)
def test_twenty_steps_equal_peft_under_the_trainer(tmp_path, by, micro_batch_tokens, said):
    """Float32, no dropout, 20 steps that learn: all losses and norms to 1e-4, though the Trainer cuts and pads its own
    micro-batches. Our loop trains our LoRA, by either engine, or PEFT's from the same start, and so all to the same."""
    plan = StepPlan(TrainingSection(global_batch_size=ROWS, epochs=1), rows=STEPS * ROWS, seed=3)
    data = their_data = rows(plan.rows)
    if said:
        data, their_data = talks(plan.rows)
    vocabulary = 1 + max(max(row.input_ids) for row in data)
    settings = TrainingSection(learning_rate=1e-2, warmup_steps=4, weight_decay=0.1, max_grad_norm=0.5, log_every=1)
    sizes = {"vocab_size": max(320, vocabulary), "context": 1_024}
    base = tiny_llama(dtype=torch.float32, **sizes)
    theirs = peft.get_peft_model(
        tiny_llama(dtype=torch.float32, **sizes), peft.LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS)
    )

    inject(base, rank=4, alpha=8, mixer={"kind": "identity"}, target_modules=PROJECTIONS)
    for name, layer in named_adapters(base):
        theirs.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.data.copy_(layer.lora_a)
    if by == "PEFT":
        base = tiny_llama(dtype=torch.float32, **sizes)
        method = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
        adapter = {"target_modules": list(PROJECTIONS), "peft": method}
        recipe = Recipe.model_validate({"name": "any", "model": {"name": "any"}, "adapter": adapter})
        base = with_adapters(base, recipe, state=peft.get_peft_model_state_dict(theirs))
    if by != "us":
        choose_engine(base.eval(), "transformers")
        assert engine_of(base).pads
    ours = Losses()
    parts = TrainState(
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

    ordered = []
    for step in range(len(plan)):
        ordered += [their_data[row] for row in plan[step]]
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
