"""A training step of a small model with adapters, beside the same by transformers' own modules."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from moslora.adapters import Families
from moslora.base.engine import use_own_modules
from moslora.base.engines import Own, Transformers, engine_of
from moslora.base.twin import small_config
from moslora.check.measure import PLAIN_STEP
from moslora.check.piece import Draw, Piece
from moslora.data.encode import Encoded
from moslora.data.steps import collate
from moslora.training.objective import LabelLoss

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Of a whole step, in which rounding adds up."""

SMALL_LLAMA: PretrainedConfig = LlamaConfig(num_key_value_heads=8)
TEXTS = [[1, 2, 3, *range(5, 9 + 2 * row)] for row in range(6)]
ROWS = [Encoded("", "", text, text, truncated=False) for text in TEXTS]


def small_model(draw: Draw, config: PretrainedConfig) -> PreTrainedModel:
    """A model with few, narrow layers and adapters off their start, of our modules or of transformers'."""
    small = small_config(config, initializer_range=0.03)
    model: Any = AutoModelForCausalLM.from_config(small, attn_implementation="sdpa")
    model.to(draw.rounded).to(draw.device, draw.dtype)
    draw.adapt(model, "all-linear", kind="dense")
    model.moslora_engine = Transformers.name
    if not draw.plain:
        use_own_modules(model)
        model.moslora_engine = Own.name
    return model


def training_step(draw: Draw, *, config: PretrainedConfig) -> Sequence[Tensor]:
    """The loss."""
    model = small_model(draw, config)
    batch = collate(ROWS, device=draw.device, share=True, lay=engine_of(model).lay)
    with Families(model).folded(draw.dtype):
        loss, _ = LabelLoss(model).train()(batch)
    return [loss]


def step_piece(config: PretrainedConfig) -> Piece:
    return Piece("a training step", PLAIN_STEP, partial(training_step, config=config), TOLERANCES)
