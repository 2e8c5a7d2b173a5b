"""The duration of a run: from its products and a share of a device's peak, or from the rate of a few real steps."""

import time

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from moslora.errors import UsageError
from moslora.plan.step import decoder_layers
from moslora.recipe import Recipe
from moslora.training.loop import accumulate
from moslora.training.optimizer import update
from moslora.training.prepare import prepare

PROBED_STEPS = 5
"""Steps that are timed, after one that is not."""

SHARE_OF_PEAK = 0.46
"""Share of a GPU's peak that training reaches, by the estimate of ``python benchmarks/roofline.py`` for LLaMA-3-8B on
an H100: docs/speed.md, "On a GPU: an estimate". No GPU has measured it."""

GPUS = {
    "RTX 4080": (16, 97.5),  # Ada GPU architecture whitepaper, float32 accumulation
    "L4": (24, 121),  # L4 datasheet, half of the figure with sparsity
    "RTX 3090": (24, 71),  # GA102 whitepaper, float32 accumulation
    "RTX 4090": (24, 165.2),  # Ada GPU architecture whitepaper, float32 accumulation
    "A100 40GB": (40, 312),  # A100 datasheet
    "L40S": (48, 362),  # L40S datasheet
    "A100 80GB": (80, 312),  # A100 datasheet
    "H100 SXM": (80, 989),  # H100 datasheet, half of the figure with sparsity
    "H200 SXM": (141, 989),  # H200 datasheet, half of the figure with sparsity
}
"""Memory in GB, and NVIDIA's published peak in 10¹² operations a second with bfloat16 products, not sparse."""


def operations(model: PreTrainedModel, *, tokens: float, labels: float, row: float, recomputed: bool) -> float:
    """Floating-point operations of a run's matrix products: ``tokens``, in rows of ``row`` tokens, and ``labels``.

    A frozen weight costs 2 operations per token and entry forwards and 2 for the gradient of its input, a trained one 2
    more for its own gradient. Checkpointing (``recomputed``) computes each layer again, up to its last product.
    A token attends to half its row, at 4 operations per entry of the queries, twice that backwards. The output layer
    runs where there is a label.
    """
    config, layers, output = model.config, decoder_layers(model), model.get_output_embeddings().weight
    frozen = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not output)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * head * row / 2
    last = sum([m for m in layer.modules() if isinstance(m, nn.Linear)][-1].weight.numel() for layer in layers)
    again = 2 * (frozen - last + trained) + 4 * attention if recomputed else 0
    per_token = 4 * frozen + 6 * trained + 12 * attention + again
    return tokens * per_token + 4 * labels * output.numel()


def at_a_share_of_peak(total: float, *, memory: int) -> str:
    """The time of ``total`` operations on each GPU that has about so many bytes of ``memory``."""
    peaks = {name: peak * 1e12 for name, (size, peak) in GPUS.items() if abs(size * 1e9 / memory - 1) < 0.1}
    times = [f"{name} {in_words(total / (peak * SHARE_OF_PEAK))}" for name, peak in peaks.items()]
    return f"; at {SHARE_OF_PEAK:.0%} of the peak, an estimate: {', '.join(times)}" if times else ""


def in_words(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"


def probe(recipe: Recipe) -> float:
    """Tokens a second of :data:`PROBED_STEPS` steps of ``recipe``, run here in one process; nothing is kept."""
    parts, _ = prepare(Accelerator(mixed_precision="no"), recipe)
    if len(parts.plan) <= PROBED_STEPS:
        raise UsageError(f"--probe: runs {PROBED_STEPS + 1} steps, but this run has {len(parts.plan)}; leave it out")
    parts.objective.train()
    steps, ends = [[parts.rows[row] for row in parts.plan[step]] for step in range(PROBED_STEPS + 1)], []
    for rows in steps:
        accumulate(parts, rows).tolist()  # waits for the device
        update(parts.optimizer, parts.scaler, max_norm=recipe.training.max_grad_norm)
        parts.optimizer.zero_grad()
        ends.append(time.perf_counter())
    return sum(len(row.input_ids) for rows in steps[1:] for row in rows) / (ends[-1] - ends[0])
