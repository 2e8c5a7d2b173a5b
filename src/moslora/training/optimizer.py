"""AdamW over factors and mixers, and the learning rate as a function of the step."""

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moslora.adapters import Magnitude, Mixer, layers_of
from moslora.kernels.plain import disabled_kernels
from moslora.recipe import TrainingSection

Schedule = Literal["linear", "cosine", "constant"]


def build_optimizer(model: nn.Module, training: TrainingSection) -> torch.optim.AdamW:
    """Build AdamW (arXiv 1711.05101) with groups for the factors A and B, for the mixers, and for DoRA's magnitudes.

    Mixers do not decay: decay would pull M towards zero, where B and A get no gradient. Without decay an invertible M
    keeps its rank under gradient flow. Magnitudes do not decay either, as they are lengths of rows.
    """
    layers = layers_of(model)
    factors_a = [layer.lora_a for layer in layers]
    factors_b = [layer.lora_b for layer in layers]
    mixers = _parameters_of(Mixer, model)
    magnitudes = _parameters_of(Magnitude, model)
    ours = {*factors_a, *factors_b, *mixers, *magnitudes}
    of_peft = [parameter for parameter in model.parameters() if parameter not in ours]

    rate = training.learning_rate
    decay = training.weight_decay
    groups: list[tuple[list[nn.Parameter], float, float]] = [
        (factors_a, rate, decay),
        (factors_b, rate * training.lora_plus_ratio, decay),
        (mixers, rate * training.mixer_rate_ratio, 0.0),
        (magnitudes, rate, 0.0),
        (of_peft, rate, decay),
    ]
    learned: list[dict[str, Any]] = []
    for parameters, lr, weight_decay in groups:
        params = [parameter for parameter in parameters if parameter.requires_grad]
        if params:
            learned.append({"params": params, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay})
    is_fused = "optimizer" not in disabled_kernels()
    return torch.optim.AdamW(learned, betas=training.betas, eps=training.eps, fused=is_fused)


def _parameters_of(kind: type[nn.Module], model: nn.Module) -> list[nn.Parameter]:
    """Parameters of all modules of a kind, in the model's order."""
    modules = [module for module in model.modules() if isinstance(module, kind)]
    return list(chain.from_iterable(module.parameters() for module in modules))


def rate_factor(step: int, *, schedule: Schedule, warmup_steps: int, total_steps: int) -> float:
    """Share of the full learning rate at ``step`` (from 0): linear warm-up, then the schedule.

    It depends on its arguments alone, so that resuming needs no scheduler state. The values are those of transformers'
    ``get_{linear,cosine,constant}_schedule_with_warmup``.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match schedule:
        case "linear":
            return max(0.0, 1 - progress)
        case "cosine":
            return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
        case "constant":
            return 1.0


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, max_norm: float) -> Tensor:
    """Clip the gradient, update the weights, and return the gradient's norm as a scalar on the device.

    If the norm is not finite, a fused AdamW or the float16 scaler skips the update; without either it is made. Without
    the scaler the training loop then ends in both cases.
    """
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(trainable(optimizer), max_norm)
    if optimizer.defaults["fused"]:  # a scaler sets its own
        optimizer.found_inf = (norm.float() * 0).nan_to_num(nan=1.0)  # type: ignore[attr-defined]
    scaler.step(optimizer)
    scaler.update()
    return norm


def fresh_moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state of ``parameter`` before its first update: a scalar count, and two moments of the parameter's shape
    (as ``exp_avg``, ``exp_avg_sq``)."""
    step = torch.zeros((), device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Create the moments that ``optimizer`` would create at its first update, where they do not exist yet."""
    for parameter in trainable(optimizer):
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = fresh_moments(parameter)


def trainable(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    """Parameters that ``optimizer`` updates."""
    for group in optimizer.param_groups:
        yield from group["params"]
