"""A training step of a small model with adapters, beside the same by transformers' own modules."""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from moslora.adapters import Families, inject, named_adapters
from moslora.base.engine import use_own_modules
from moslora.base.twin import small_config
from moslora.check.measure import PLAIN_STEP
from moslora.check.piece import Draw, Pair, Piece
from moslora.check.pieces import plain_adapter
from moslora.data.encode import Encoded
from moslora.data.steps import collate
from moslora.training.objective import LabelLoss

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Of a whole step, in which rounding adds up."""

SMALL_LLAMA: PretrainedConfig = LlamaConfig(num_key_value_heads=8)
TEXTS = [[1, 2, 3, *range(5, 9 + 2 * row)] for row in range(6)]
ROWS = [Encoded("", "", text, text, truncated=False) for text in TEXTS]


def small_models(draw: Draw, config: PretrainedConfig) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with few, narrow layers and transformers' modules; and the same with ours, and moved adapters."""
    small = small_config(config, initializer_range=0.03)
    stock: Any = AutoModelForCausalLM.from_config(small, attn_implementation="sdpa")
    stock.to(draw.device, draw.dtype).requires_grad_(False)
    model = deepcopy(stock)
    use_own_modules(model)
    inject(model, rank=4, alpha=1, mixer={"kind": "dense"}, target_modules="all-linear")
    draw.move(model)
    return stock, model


def training_step(draw: Draw, *, config: PretrainedConfig) -> Pair:
    """The loss, and the gradients of all factors."""
    stock, model = small_models(draw, config)
    for name, layer in named_adapters(model):
        stock.get_submodule(name).forward = partial(plain_adapter, layer)
    objective = LabelLoss(model).train()
    families = Families(model)

    def ours() -> list[Tensor]:
        with families.folded(draw.dtype):
            loss, _ = objective(collate(ROWS, device=draw.device, share=True))
        return [loss]

    def plain() -> list[Tensor]:
        losses = []
        for text in TEXTS:
            ids = torch.tensor([text], device=draw.device)
            mean = stock(input_ids=ids, labels=ids, use_cache=False).loss
            losses.append(mean * (len(text) - 1))
        return [torch.stack(losses).sum()]

    return ours, plain


def step_piece(config: PretrainedConfig) -> Piece:
    return Piece("a training step", PLAIN_STEP, partial(training_step, config=config), TOLERANCES)
