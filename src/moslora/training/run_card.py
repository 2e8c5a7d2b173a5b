"""A run in words: the lines that it prints at its start, and what ``run.json`` says of machine, code and kernels."""

import platform
import re
import subprocess
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from moslora.adapters import named_adapters, shares_beginnings
from moslora.base import identity
from moslora.base.adapted import adapted_layers
from moslora.data.steps import StepPlan
from moslora.kernels import attention, liger, linear, norm
from moslora.kernels.dropout import Dropout
from moslora.kernels.mlp import GatedMLP
from moslora.kernels.rotary import RotaryAttention
from moslora.processes.devices import gpu_module, gpus, total_memory
from moslora.recipe import Adapter, ModelSection, Recipe, TrainingSection
from moslora.version import PACKAGE, __version__


def describe(
    model: PreTrainedModel, plan: StepPlan, *, base: ModelSection, adapter: Adapter, training: TrainingSection
) -> list[str]:
    """The lines that a run prints at its start."""
    # A packed 4-bit weight has fewer entries than parameters.
    linear = {m.weight: m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(linear.get(p, p.numel()) for p in model.parameters())
    learned = any(p.requires_grad for _, layer in named_adapters(model) for p in layer.mixer.parameters())
    warmup, ratios = training.warmup(len(plan)), {"B": training.lora_plus_ratio}
    ratios |= {"M": training.mixer_rate_ratio} if learned else {}
    rates = [f"learning rate {training.learning_rate:g}", *(f"{x} × {n:g}" for x, n in ratios.items() if n != 1)]
    end = "max_steps" if len(plan) == training.max_steps else "epochs"
    rises = [f"note: training.warmup_steps = {warmup:,} of {len(plan):,} steps: the learning rate only rises"]
    return [
        f"{base.name} in {base.precision}, {len(adapted_layers(model))} layers adapted: {adapter.summary()}",
        f"{trainable:,} trainable parameters of {total:,} ({trainable / total:.3%})",
        f"{len(plan):,} steps of {training.global_batch_size} rows (by training.{end}), {', '.join(rates)},"
        f" {training.schedule} after {warmup} warm-up steps",
        *(rises if warmup >= len(plan) else []),
    ]


def packages(recipe: Recipe) -> dict[str, str]:
    """The versions of the packages that compute, or would: Liger-Kernel is tried later, in all processes together."""
    quantized = recipe.model.quantization is not None
    found = identity.packages(quantized=quantized, peft=recipe.adapter.needs_peft)
    if gpus() and liger.there():
        name = packages_distributions()["liger_kernel"][0]  # or its nightly
        found[name] = version(name)
    return {"moslora": __version__, **found}


def versions(recipe: Recipe) -> dict[str, str]:
    """The version of Python, and those of `packages`."""
    return {"python": platform.python_version(), **packages(recipe)}


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
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def git_state() -> dict[str, Any] | None:
    """The commit of this code, and whether the code differs from it; ``None`` outside a checkout."""

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", PACKAGE, *arguments], capture_output=True, encoding="utf-8", check=True)
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
    named = [getattr(module, name, None) for module in modules for name in ("head_dim", "head_size")]
    heads = {size for size in named if isinstance(size, int)}
    by_liger = liger.takes(torch.empty(0, device=device, dtype=model.dtype))
    dropping = any(isinstance(module, Dropout) and module.p for module in modules)
    return {
        "attention": ", ".join(sorted({attention.kernel(device, model.dtype, size) for size in heads})) or None,
        "frozen layers": linear.kernel(device, model.dtype),
        "norm": norm.kernel(device) if norm.RMSNorm in kinds else "transformers'",
        "RoPE": ("Liger" if by_liger else "in three passes") if RotaryAttention in kinds else "transformers'",
        "MLP": "activation computed again" + ", Liger" * by_liger if GatedMLP in kinds else "transformers'",
        "dropout": Dropout.kernel(device) if dropping else None,
        "common beginning of rows": "once" if shares_beginnings(model, training=True) else "in each row",
    }


def strategy(objective: nn.Module) -> dict[str, Any]:
    """The strategy, and the share of the frozen weights in this process, both read from the model."""
    frozen = [parameter for parameter in objective.parameters() if not parameter.requires_grad]
    here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in frozen)
    kind = "fsdp" if any(isinstance(p, DTensor) for p in frozen) else "ddp"
    return {
        "strategy": kind if isinstance(objective, DistributedDataParallel) else None,
        "frozen_share": round(here / sum(p.numel() for p in frozen), 4),
    }
