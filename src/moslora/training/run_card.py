"""A run in words: the lines that it prints at its start, and what ``run.json`` says of machine, code and kernels."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

import moslora
from moslora.adapters import named_adapters, shares_beginnings
from moslora.data.steps import StepPlan
from moslora.kernels import attention, linear, norm
from moslora.kernels.dropout import Dropout
from moslora.kernels.mlp import GatedMLP
from moslora.processes.devices import gpu_module, total_memory
from moslora.recipe import AdapterSection, ModelSection, TrainingSection
from moslora.training.optimizer import mixer_learns


def describe(
    model: PreTrainedModel, plan: StepPlan, *, base: ModelSection, adapter: AdapterSection, training: TrainingSection
) -> list[str]:
    """The lines that a run prints at its start."""
    # A packed 4-bit weight has fewer entries than parameters.
    linear = {
        layer.weight: layer.in_features * layer.out_features
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    }
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(linear.get(p, p.numel()) for p in model.parameters())
    layers, learned = len(list(named_adapters(model))), mixer_learns(model)
    own = {"mixer_rate_ratio": (training.mixer_rate_ratio, 1), "mixer_weight_decay": (training.mixer_weight_decay, 0)}
    notes = [
        f"note: training.{field} = {value:g} has no effect: this mixer has no learned parameters"
        for field, (value, default) in own.items()
        if value != default and not learned
    ]
    if (warmup := training.warmup(len(plan))) >= len(plan):
        notes.append(f"note: training.warmup_steps = {warmup:,} of {len(plan):,} steps: the learning rate only rises")
    rates = [f"B × {training.lora_plus_ratio:g}"] if training.lora_plus_ratio != 1 else []
    rates += [f"M × {training.mixer_rate_ratio:g}"] if training.mixer_rate_ratio != 1 and learned else []
    return [
        f"{base.name} in {base.precision}, {layers} layers adapted: {adapter.summary()}",
        f"{trainable:,} trainable parameters of {total:,} ({trainable / total:.3%})",
        f"{len(plan):,} steps of {training.global_batch_size} rows, learning rate {training.learning_rate:g}"
        + (f" ({', '.join(rates)})" if rates else "")
        + f", {training.schedule} after {warmup} warm-up steps",
        *notes,
    ]


def packages(*, quantized: bool) -> dict[str, str]:
    """The versions of the packages that compute."""
    names = ["torch", "transformers", "accelerate"] + ["bitsandbytes"] * quantized
    return {"moslora": moslora.__version__, **{name: version(name) for name in names}}


def versions(*, quantized: bool) -> dict[str, str]:
    """Of Python and of `packages`."""
    return {"python": platform.python_version(), **packages(quantized=quantized)}


def hardware(device: torch.device) -> dict[str, Any]:
    """The device of one process; memory in GB."""
    on_gpu = device.type != "cpu"
    return {
        "device": gpu_module().get_device_name(device) if on_gpu else processor(),
        "memory_gb": round(total_memory(device) / 1e9, 1),
        **({"cuda": torch.version.cuda} if on_gpu else {"threads": torch.get_num_threads()}),
        "system": platform.platform(),
    }


def processor() -> str:
    """The processor's name, or at least its kind."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def git_state() -> dict[str, Any] | None:
    """The commit of this code, and whether the code differs from it; ``None`` outside a checkout."""
    package = Path(moslora.__file__).parent

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails for a copy in the environment of another checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def kernels(model: PreTrainedModel, device: torch.device) -> dict[str, str | None]:
    """Which of the equal ways to compute was chosen; ``None`` for what the model does not have."""
    modules = list(model.modules())
    kinds = {type(module) for module in modules}
    dropping = any(isinstance(module, Dropout) and module.p for module in modules)
    return {
        "attention": attention.kernel(device),
        "frozen layers": linear.kernel(device, model.dtype),
        "norm": norm.kernel(device) if norm.RMSNorm in kinds else "transformers'",
        "MLP": "activation computed again" if GatedMLP in kinds else "transformers'",
        "dropout": Dropout.kernel(device) if dropping else None,
        "common beginning of rows": "once" if shares_beginnings(model, training=True) else "in each row",
    }
