"""Training steps of a small model with adapters by moslora's engine and loop, compared with transformers' modules."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from moslora.adapters import SharedInputLayers
from moslora.base.engines import Own, Transformers, engine_of
from moslora.base.load import recompute_layers
from moslora.base.own_engine import use_own_modules
from moslora.base.twin import small_config
from moslora.choices import Strategy
from moslora.data.encode import Encoded
from moslora.data.prepared import RowTable
from moslora.data.steps import StepPlan, collate, label_count
from moslora.recipe import TrainingSection
from moslora.selfcheck.piece import PLAIN_STEP, Draw, Piece
from moslora.training.loop import TrainState, train
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer
from moslora.training.prepare import distribute

CHECKPOINTING = "model.gradient_checkpointing=false"
"""Setting with which no layer is recomputed."""

MICRO_BATCH_TOKENS = 16
"""Small enough for several micro-batches in a step, even for each of two processes."""

STEP_DRAWS, LOOP_DRAWS = 8, 4
"""Numbers of random models whose step and whose loop is compared, because rounding errors vary between models."""

SMALL_LLAMA: PretrainedConfig = LlamaConfig(num_key_value_heads=8)
TEXTS = [[1, 2, 3, *range(5, 9 + 2 * row)] for row in range(6)]
ROWS = [Encoded("", "", text, text, truncated=False) for text in TEXTS]
SETTINGS = TrainingSection(global_batch_size=4, epochs=None, max_steps=3, warmup_steps=0, eps=1e-3)


def small_model(draw: Draw, config: PretrainedConfig) -> PreTrainedModel:
    """Model with few, narrow layers and random adapters, of moslora's modules or, if ``draw.plain``, transformers'."""
    small = small_config(config, initializer_range=0.03)
    model: Any = AutoModelForCausalLM.from_config(small, attn_implementation="sdpa")
    model.to(draw.rounded).to(draw.device, draw.dtype)
    draw.adapt(model, "all-linear", kind="dense")
    model.moslora_engine = Transformers.name
    if not draw.plain:
        use_own_modules(model)
        model.moslora_engine = Own.name
    return model


def training_step(draw: Draw, *, config: PretrainedConfig, checkpointing: bool) -> Sequence[Tensor]:
    """Loss of a training step, and the gradients of the adapters' weights."""
    model = small_model(draw, config)
    if checkpointing and not draw.plain:
        recompute_layers(model.train())
    batch = collate(ROWS, device=draw.device, share=True, build_batch=engine_of(model).build_batch)
    with SharedInputLayers(model).folded(draw.dtype):
        loss, _ = LabelLoss(model).train()(batch)
        gradients = torch.autograd.grad(loss, draw.learned)
    draw.learned.clear()
    return [loss.detach(), *gradients]


def train_state(draw: Draw, model: PreTrainedModel, strategy: Strategy = "ddp") -> TrainState:
    """State of a training of ``model`` on :data:`ROWS`; with an active scaler if the dtype of ``draw`` is float16."""
    accelerator = Accelerator(mixed_precision="no", cpu=draw.device.type == "cpu")
    return TrainState(
        accelerator=accelerator,
        settings=SETTINGS,
        model=model,
        objective=distribute(LabelLoss(model), accelerator, strategy).train(),
        optimizer=build_optimizer(model, SETTINGS),
        scaler=torch.amp.GradScaler(draw.device.type, init_scale=2**10, enabled=draw.dtype == torch.float16),
        rows=RowTable.of(ROWS),
        plan=StepPlan(SETTINGS, rows=len(ROWS), seed=0),
        micro_batch_tokens=MICRO_BATCH_TOKENS,
    )


def training_loop(draw: Draw, *, config: PretrainedConfig) -> Sequence[Tensor]:
    """Losses of some training steps, and the changes of the weights: by the training loop, or, if ``draw.plain``, with
    the steps written out in plain torch.

    In float16 the loop uses the scaler.
    """
    model = small_model(draw, config)
    before = [weight.detach().clone() for weight in draw.learned]
    losses: list[Tensor] = []
    if draw.plain:
        settings = SETTINGS
        plan = StepPlan(settings, rows=len(ROWS), seed=0)
        adamw = torch.optim.AdamW(draw.learned, settings.learning_rate, settings.betas, settings.eps, weight_decay=0)
        for step in range(len(plan)):
            rows = [ROWS[row] for row in plan[step]]
            loss, _ = LabelLoss(model)(collate(rows, device=draw.device, build_batch=Transformers.build_batch))
            losses.append(loss / label_count(rows))
            losses[-1].backward()
            nn.utils.clip_grad_norm_(draw.learned, settings.max_grad_norm)
            for group in adamw.param_groups:
                group["lr"] = settings.learning_rate * (1 - step / len(plan))
            adamw.step()
            adamw.zero_grad()
    else:
        train(
            train_state(draw, model),
            first_step=0,
            report=lambda _, *, loss, **others: losses.append(torch.tensor(loss)),
            checkpoint=lambda _: None,
            validate=lambda _: False,
            stop_requested=lambda: False,
        )
    moved = [weight.detach() - start for weight, start in zip(draw.learned, before, strict=True)]
    draw.learned.clear()
    return [torch.stack(losses).detach().to(draw.device), *moved]


def whole_pieces(config: PretrainedConfig) -> list[Piece]:
    """Pieces that are whole training steps of a small model of ``config``."""
    step = partial(training_step, config=config)
    return [
        Piece("a training step", PLAIN_STEP, partial(step, checkpointing=False), draws=STEP_DRAWS),
        Piece("a training step, checkpointing", CHECKPOINTING, partial(step, checkpointing=True), draws=STEP_DRAWS),
        Piece("the training loop", PLAIN_STEP, partial(training_loop, config=config), draws=LOOP_DRAWS),
    ]
