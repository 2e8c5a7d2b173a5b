"""The duration of a run: from its products and a share of a device's peak, or from the rate of a few real steps."""

import time
from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, named_adapters
from moslora.choices import DType
from moslora.errors import UsageError
from moslora.plan.step import decoder_layers
from moslora.processes.devices import device
from moslora.recipe import ModelSection, Recipe
from moslora.training.loop import accumulate
from moslora.training.optimizer import update
from moslora.training.prepare import prepare

PROBED_STEPS = 5
"""Steps that are timed, after one that is not."""

SHARE_OF_PEAK = 0.46
"""Share of a GPU's peak that training in 16 bits reaches, by the estimate of ``python -m benchmarks.gpu.roofline`` for
LLaMA-3-8B on an H100: docs/speed.md, "On a GPU: an estimate". No GPU has measured it."""

SHARE_OF_FLOAT32_PEAK = 0.63
"""The same in float32, by the same rules: products at 66 % of the peak take 1.18 s of an H100, all else, which moves
twice the bytes, 0.07."""

SHARE_OF_BANDWIDTH = 0.78
"""Share of a GPU's bandwidth that unpacking reaches, an assumption of the same estimate."""

UNPACKED = 2.5
"""Bytes that move for a number of an NF4 weight each time that it is unpacked: half a byte in, two out."""


class Gpu(NamedTuple):
    """What NVIDIA publishes: memory in GB, 10¹² operations a second of products that are not sparse, GB a second."""

    memory: float
    half: float  # bfloat16 and float16, with sums in float32
    single: float  # float32, not TF32, which torch does not use unless it is told to
    bandwidth: float


GPUS = {
    "RTX 4080": Gpu(16, 97.5, 48.7, 717),  # Ada GPU architecture whitepaper
    "L4": Gpu(24, 121, 30.3, 300),  # L4 datasheet, half of the figure with sparsity
    "RTX 3090": Gpu(24, 71, 35.6, 936),  # GA102 whitepaper
    "RTX 4090": Gpu(24, 165.2, 82.6, 1008),  # Ada GPU architecture whitepaper
    "A100 40GB": Gpu(40, 312, 19.5, 1555),  # A100 datasheet
    "L40S": Gpu(48, 362, 91.6, 864),  # L40S datasheet
    "A100 80GB": Gpu(80, 312, 19.5, 2039),  # A100 datasheet, SXM
    "H100 SXM": Gpu(80, 989, 67, 3350),  # H100 datasheet, half of the figure with sparsity
    "H200 SXM": Gpu(141, 989, 67, 4800),  # H200 datasheet, half of the figure with sparsity
}


@dataclass(frozen=True)
class Cost:
    """What a run has the devices do: operations of its products, and bytes that unpacking 4-bit weights moves."""

    operations: float
    unpacked: float = 0.0

    def of_each(self, processes: int) -> "Cost":
        """The share of each of so many processes."""
        return Cost(self.operations / processes, self.unpacked / processes)

    def seconds(self, gpu: Gpu, *, dtype: DType) -> float:
        """An ESTIMATE of the time of all of it on one such GPU."""
        peak, share = (gpu.single, SHARE_OF_FLOAT32_PEAK) if dtype == "float32" else (gpu.half, SHARE_OF_PEAK)
        return self.operations / (peak * 1e12 * share) + self.unpacked / (gpu.bandwidth * 1e9 * SHARE_OF_BANDWIDTH)


def cost(
    model: PreTrainedModel, section: ModelSection, *, tokens: float, labels: float, row: float, passes: float
) -> Cost:
    """Of a run of ``tokens``, in rows of ``row`` tokens, and ``labels``, in so many ``passes`` (of one process each).

    A frozen weight costs 2 operations per token and entry forwards and 2 for the gradient of its input, a trained one 2
    more for its own gradient. DoRA multiplies by the frozen weight once more where dropout acts, and in each pass
    by the rows of A. Checkpointing computes each layer again, up to its last product, if DoRA does not need that one. A
    token attends to half its row, at 4 operations per entry of the queries, twice that backwards. The output layer runs
    where there is a label. A 4-bit weight is unpacked for each product, once a pass.
    """
    config = model.config.get_text_config(decoder=True)
    output = model.get_output_embeddings().weight
    decoder: nn.Module = model.get_decoder()
    frozen = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, nn.Linear) and m.weight is not output)
    scaled = [layer for _, layer in named_adapters(model) if layer.magnitude is not None]
    of_layers = [[m for m in layer.modules() if isinstance(m, nn.Linear)] for layer in decoder_layers(model)]
    rescaled = {layer.base for layer in scaled}  # whose product is needed to rescale it
    last = sum(linears[-1].weight.numel() for linears in of_layers if linears and linears[-1] not in rescaled)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dropped = sum(_entries(layer) for layer in scaled if layer.dropout.p)
    norms = sum(_entries(layer) * layer.lora_b.shape[1] for layer in scaled)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * head * row / 2

    forward = 2 * (frozen + dropped + trained) + 4 * attention
    backward = 2 * (frozen + dropped) + 4 * trained + 8 * attention
    again = 2 * (frozen - last + dropped + trained) + 4 * attention if section.gradient_checkpointing else 0
    times_forward = 1 + section.gradient_checkpointing
    products = tokens * (forward + backward + again) + 2 * passes * norms * times_forward
    if section.quantization != "nf4":
        return Cost(products + 4 * labels * output.numel())
    of_norms = sum(map(_entries, scaled))
    unpackings = (
        times_forward * (frozen + dropped + of_norms) + frozen + dropped - last * section.gradient_checkpointing
    )
    return Cost(products + 4 * labels * output.numel(), passes * unpackings * UNPACKED)


def _entries(layer: AdapterLinear) -> int:
    return layer.in_features * layer.out_features


def on_gpus(total: Cost, *, dtype: DType, memory: int) -> str:
    """The time of ``total`` on each GPU that has about so many bytes of ``memory``: estimates, and what they assume."""
    times = [
        f"{name} {in_words(total.seconds(gpu, dtype=dtype))}"
        for name, gpu in GPUS.items()
        if abs(gpu.memory * 1e9 / memory - 1) < 0.1
    ]
    if not times:
        return ""
    share = SHARE_OF_FLOAT32_PEAK if dtype == "float32" else SHARE_OF_PEAK
    assumed = f"at {share:.0%} of the peak of {dtype}"
    if total.unpacked:
        assumed += f", and unpacking at {SHARE_OF_BANDWIDTH:.0%} of the bandwidth"
    return f"; {assumed}, an estimate: {', '.join(times)}"


def in_words(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"


def probe(recipe: Recipe) -> float:
    """Tokens a second of :data:`PROBED_STEPS` steps of ``recipe``, run here in one process; nothing is kept."""
    # Else accelerate would take a Mac's GPU, on which nothing here trains.
    parts, _ = prepare(Accelerator(mixed_precision="no", cpu=device().type == "cpu"), recipe)
    if len(parts.plan) <= PROBED_STEPS:
        raise UsageError(
            f"--probe: needs a run of {PROBED_STEPS + 1} steps, and this one has {len(parts.plan)}; leave it out"
        )
    parts.objective.train()
    steps, ends = [[parts.rows[row] for row in parts.plan[step]] for step in range(PROBED_STEPS + 1)], []
    for rows in steps:
        accumulate(parts, rows).tolist()  # waits for the device
        update(parts.optimizer, parts.scaler, max_norm=recipe.training.max_grad_norm)
        parts.optimizer.zero_grad()
        ends.append(time.perf_counter())
    return sum(len(row.input_ids) for rows in steps[1:] for row in rows) / (ends[-1] - ends[0])
