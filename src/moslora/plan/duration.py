"""Time of a run: estimated from its matrix products and a GPU's peak, from matrix products timed on this CPU, or from
measured steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import named_adapters
from moslora.base.load import DTYPES
from moslora.choices import DType
from moslora.data.encode import Encoded
from moslora.errors import UsageError
from moslora.kernels import liger
from moslora.kernels.linear import FrozenLinear
from moslora.plan.step import decoder_layers, multiplied_twice
from moslora.processes.devices import device
from moslora.recipe import ModelSection, Recipe
from moslora.training.loop import TrainState, accumulate
from moslora.training.optimizer import update
from moslora.training.prepare import prepare

PROBED_STEPS = 5
"""Number of steps that are timed, after a first step that is not."""

SHARE_OF_PEAK = (0.52, 0.45)
"""Share of a GPU's peak that training in 16 bits reaches, at the fast and the slow end of the estimate of ``python -m
benchmarks.gpu.roofline`` for LLaMA-3-8B on an H100: docs/speed.md, "On a GPU: an estimate". No training on a GPU has
measured it."""

SHARE_OF_FLOAT32_PEAK = (0.63, 0.57)
"""Share of a GPU's float32 peak that training reaches, an assumption: of a step on an H100, products take 1.18 s at 66
% of the peak, and everything else 0.07 s, as it moves twice the bytes."""

SHARE_OF_BANDWIDTH = (0.78, 0.72)
"""Share of a GPU's bandwidth that unpacking 4-bit weights reaches, an assumption: a copy reaches 90 %."""

HOST_OF_A_LAYER = (1.4e-3, 3.2e-3)
"""Seconds in which a GPU's host launches a decoder layer, forwards and backwards, by the estimate of `SHARE_OF_PEAK`:
46 to 104 ms for 32 layers. The GPU waits for the host where it has less to do."""

HOST_OF_A_SCORED_LAYER = 1 / 3
"""Host's time for a forward pass of a decoder layer, which checkpointing repeats, relative to a training pass: 76
launches with checkpointing, and 56 without it."""

HOST_WITHOUT_LIGER = 1.45
"""Host's time for a layer without Liger-Kernel, relative to a layer with it: 2,987 launches of a step against 2,061, by
the estimate of `SHARE_OF_PEAK`."""

HOST_OF_A_MAGNITUDE = 0.9
"""Host's time for DoRA in one linear layer with dropout, relative to a decoder layer: 50 launches against 56."""

SHARE_ON_A_CPU = 0.7
"""Share of the speed of a CPU's products that training reaches: docs/speed.md, "Training"."""

UNPACKED = 2.5
"""Bytes moved per entry of an NF4 weight each time that it is unpacked: half a byte is read, two are written."""


class Gpu(NamedTuple):
    """NVIDIA's published figures of a GPU."""

    memory: float  # GB
    half: float  # 10¹² operations a second in dense products of bfloat16 or float16, with sums in float32
    single: float  # the same in float32, not TF32, which torch does not use unless it is told to
    bandwidth: float  # GB a second


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


def gpus_with(memory: int) -> dict[str, Gpu]:
    """GPUs with about ``memory`` bytes, or else those of the nearest size."""
    off = {name: abs(gpu.memory * 1e9 / memory - 1) for name, gpu in GPUS.items()}
    most = max(0.1, min(off.values()))
    return {name: gpu for name, gpu in GPUS.items() if off[name] <= most}


@dataclass(frozen=True)
class Cost:
    """Work of a run: operations of its matrix products, bytes moved to unpack 4-bit weights, and the host's launches.

    The unit of launches is a decoder layer, forwards and backwards.
    """

    operations: float
    unpacked: float = 0.0
    launched: float = 0.0

    def seconds(self, gpu: Gpu, *, dtype: DType) -> list[float]:
        """Estimate the time on one ``gpu`` in seconds, its fast and its slow end; the device or the host limits it."""
        peak, shares = (gpu.single, SHARE_OF_FLOAT32_PEAK) if dtype == "float32" else (gpu.half, SHARE_OF_PEAK)
        ends = []
        for share, of_bandwidth, of_layer in zip(shares, SHARE_OF_BANDWIDTH, HOST_OF_A_LAYER, strict=True):
            products = self.operations / (peak * 1e12 * share)
            unpacking = self.unpacked / (gpu.bandwidth * 1e9 * of_bandwidth)
            ends.append(max(products + unpacking, of_layer * self.launched))
        return ends


def cost(
    model: PreTrainedModel, section: ModelSection, *, tokens: float, labels: float, row: float, passes: float
) -> Cost:
    """Count the work of a run on ``tokens`` tokens, of which ``labels`` are in the loss, in rows of ``row`` tokens.

    The matrix products of a pass, in operations per token:

    - A frozen weight costs 2 per entry forwards, and 2 for the gradient of its input. A trained one costs 2 more for
      its own gradient.
    - DoRA multiplies by the frozen weight once more where dropout acts.
    - A token attends to half of its row, at 4 per entry of the queries, and twice that backwards.
    - Checkpointing computes each layer again up to its last product; where DoRA needs it, also the last product.
    - The output layer runs only where there is a label.

    A 4-bit weight is unpacked twice a pass: for each product, or with checkpointing for the first forward product, and
    for the two after it together. The host's launches are counted with Liger-Kernel if it is installed here.

    Args:
        passes: number of passes, each forwards and backwards, of all processes together.
    """
    output = model.get_output_embeddings().weight
    config = model.config.get_text_config(decoder=True)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Entries of the queries in all layers, times the mean number of tokens that a token attends to.
    attention = config.num_hidden_layers * config.num_attention_heads * head * row / 2
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in _linear_weights(model.get_decoder()) if weight is not output)
    dora = multiplied_twice(model)
    frozen += sum(layer.in_features * layer.out_features for layer in dora)

    forward = 2 * (frozen + trained) + 4 * attention
    backward = 2 * frozen + 4 * trained + 8 * attention
    recomputed = 0.0
    if section.gradient_checkpointing:
        last = 0
        if not dora:  # which needs the last product
            last = sum(weight.numel() for layer in decoder_layers(model) for weight in _linear_weights(layer)[-1:])
        recomputed = forward - 2 * last
    operations = tokens * (forward + backward + recomputed) + 4 * labels * output.numel()
    magnitudes = sum(layer.magnitude is not None for _, layer in named_adapters(model))
    of_a_layer = 1.0 if liger.is_installed() else HOST_WITHOUT_LIGER
    launched = passes * (of_a_layer * len(decoder_layers(model)) + HOST_OF_A_MAGNITUDE * magnitudes)
    if section.gradient_checkpointing:
        launched *= 1 + HOST_OF_A_SCORED_LAYER
    if section.quantization != "nf4":
        return Cost(operations, launched=launched)
    return Cost(operations, passes * 2 * frozen * UNPACKED, launched)


def _linear_weights(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]


def on_gpus(total: Cost, *, dtype: DType, memory: int, devices: int, beside: float = 0) -> str:
    """Estimate the time of ``total``, for each kind of GPU that has about ``memory`` bytes, on ``devices`` of them.

    ``beside`` are seconds to add that are not divided among the GPUs.
    """
    times = []
    for name, gpu in gpus_with(memory).items():
        fast, slow = (end / devices + beside for end in total.seconds(gpu, dtype=dtype))
        times.append(f"{name} {format_duration(fast, slow)}")
    return ", ".join(times)


def on_this_cpu(total: Cost, model: PreTrainedModel, dtype: DType) -> float:
    """Estimate the seconds of ``total`` on all cores from two timed matrix products.

    They are the smallest and the largest of a decoder layer of ``model``, for 256 tokens, with few enough outputs to
    take little memory.
    """
    weights = sorted(_linear_weights(next(iter(decoder_layers(model)), model)), key=Tensor.numel)
    operations = 0
    seconds = 0.0
    with torch.no_grad():
        for weight in (weights[0], weights[-1]):
            outputs, inputs = min(len(weight), 4096), weight.shape[1]
            layer = FrozenLinear(nn.Linear(inputs, outputs, bias=False, dtype=DTYPES[dtype]).requires_grad_(False))
            x = torch.ones(256, inputs, dtype=DTYPES[dtype])
            layer(x)  # may pack the weight
            began = time.perf_counter()
            layer(x)
            seconds += time.perf_counter() - began
            operations += 2 * x.numel() * outputs
    return total.operations * seconds / operations / SHARE_ON_A_CPU


def format_duration(*ends: float) -> str:
    """Format seconds, or a range, in minutes below an hour and a half and else in hours, rounded to whole hours from a
    hundred on."""
    unit, size, digits = "min", 60, 0
    if max(ends) >= 1.5 * 3600:
        unit, size = "h", 3600
        digits = 1 if max(ends) < 100 * 3600 else 0
    written = dict.fromkeys(f"{max(60, end) / size:,.{digits}f}" for end in ends)  # one, where both ends are alike
    return f"{'–'.join(written)} {unit}"


def probe(recipe: Recipe, *, count: int = PROBED_STEPS) -> float:
    """Measure the tokens a second of ``count`` steps of ``recipe``, run here in one process. Nothing is saved."""
    on_cpu = device().type == "cpu"  # otherwise accelerate would take a Mac's GPU, on which nothing here trains
    state, _ = prepare(Accelerator(mixed_precision="no", cpu=on_cpu), recipe)
    if len(state.plan) <= count:
        raise UsageError(f"--probe: needs a run of {count + 1} steps, and this one has {len(state.plan)}; leave it out")
    state.objective.train()
    tokens = 0
    seconds = 0.0
    for step in range(count + 1):
        rows = state.drawn(step)
        took = timed_step(state, rows)
        if step:
            seconds += took
            tokens += sum(len(row.input_ids) for row in rows)
    return tokens / seconds


def timed_step(state: TrainState, rows: Sequence[Encoded]) -> float:
    """Run a step with ``rows`` and return its seconds."""
    began = time.perf_counter()
    accumulate(state, rows)
    update(state.optimizer, state.scaler, max_norm=state.settings.max_grad_norm).tolist()  # waits for the device
    return time.perf_counter() - began
