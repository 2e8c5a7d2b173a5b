"""How long a run takes: from its products and a share of a device's peak, or from the rate of a few real steps."""

import time
from typing import NamedTuple

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from moslora.errors import UsageError
from moslora.plan.activations import head_size
from moslora.recipe import Recipe
from moslora.training.loop import train
from moslora.training.prepare import prepare

PROBED_STEPS = 5
"""After one that is not counted."""

SHARE_OF_PEAK = 0.4
"""Of a GPU's peak that training is assumed to reach."""


class GPU(NamedTuple):
    """A GPU: its memory in GB, and its peak in 10¹² operations a second with bfloat16 products, not sparse."""

    name: str
    memory: int
    peak: float


GPUS = (
    GPU("RTX 4080", 16, 97.5),  # Ada GPU architecture whitepaper, float32 accumulation
    GPU("L4", 24, 121),  # L4 datasheet, half of the figure with sparsity
    GPU("RTX 3090", 24, 71),  # GA102 whitepaper, float32 accumulation
    GPU("RTX 4090", 24, 165.2),  # Ada GPU architecture whitepaper, float32 accumulation
    GPU("A100 40GB", 40, 312),  # A100 datasheet
    GPU("L40S", 48, 362),  # L40S datasheet
    GPU("A100 80GB", 80, 312),  # A100 datasheet
    GPU("H100 SXM", 80, 989),  # H100 datasheet, half of the figure with sparsity
    GPU("H200 SXM", 141, 989),  # H200 datasheet, half of the figure with sparsity
)
"""With NVIDIA's published figures."""


def operations(model: PreTrainedModel, *, tokens: int, labels: int, row: float, recomputed: bool) -> float:
    """Floating-point operations of a run's matrix products.

    A frozen weight costs 2 operations per token and entry forwards and 2 for the gradient of its input, a trained one 2
    more for its own gradient. Gradient checkpointing computes each layer again, up to its last product. A token attends
    to half its row, at 4 operations per entry of the queries, twice that backwards. The output layer runs where there
    is a label. ``tokens`` and ``labels`` are those of the run, ``row`` the tokens of a row, and ``recomputed`` says
    whether there is checkpointing.
    """
    config, output, again = model.config, model.get_output_embeddings().weight, int(recomputed)
    frozen = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not output)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    attention = config.num_hidden_layers * config.num_attention_heads * head_size(model) * row / 2
    last = config.num_hidden_layers * config.intermediate_size * config.hidden_size
    per_token = 4 * frozen + 6 * trained + 12 * attention + again * (2 * (frozen - last + trained) + 4 * attention)
    return tokens * per_token + 4 * labels * output.numel()


class _Clock:
    """Notes when each step of a training loop ends, and its tokens."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []

    def count(self, *, tokens: int, examples: int) -> None:
        self.ends.append(time.perf_counter())
        self.tokens.append(tokens)

    def log(self, step: int, **values: float) -> None:
        pass


def probe(recipe: Recipe) -> float:
    """Tokens a second of :data:`PROBED_STEPS` steps of ``recipe``, run here in one process; nothing is kept."""
    parts, _ = prepare(Accelerator(mixed_precision="no"), recipe)
    if len(parts.plan) <= PROBED_STEPS:
        raise UsageError(f"--probe: runs {PROBED_STEPS + 1} steps, but this run has {len(parts.plan)}; leave it out")
    clock = _Clock()
    train(
        parts,
        recipe.training,
        first_step=0,
        observer=clock,
        checkpoint=lambda step: None,
        validate=lambda step: None,
        stop_requested=lambda: len(clock.ends) >= PROBED_STEPS,
    )
    return sum(clock.tokens[1:]) / (clock.ends[-1] - clock.ends[0])
