"""Description of a run: the lines that it prints at its start, and the machine, code and kernels in ``run.json``."""

import platform
from importlib.metadata import packages_distributions, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from moslora.adapters import shares_beginnings
from moslora.base import identity
from moslora.base.adapted import adapted_layers, adapters_of
from moslora.base.engines import engine_of
from moslora.data.steps import StepPlan
from moslora.kernels import attention, liger, linear, norm
from moslora.kernels.dropout import Dropout
from moslora.kernels.mlp import GatedMLP
from moslora.kernels.plain import VARIABLE, disabled_kernels
from moslora.kernels.rotary import RotaryAttention
from moslora.processes.devices import device_name, gpus, total_memory
from moslora.processes.group import group_size
from moslora.recipe import Adapter, ModelSection, Recipe, TrainingSection
from moslora.runs.best import BEST, TRAINED_STEPS
from moslora.runs.manifest import read_manifest
from moslora.runs.run import Run
from moslora.version import __version__


def describe(
    model: PreTrainedModel, plan: StepPlan, *, base: ModelSection, adapter: Adapter, training: TrainingSection
) -> list[str]:
    """Lines that a run prints at its start."""
    # A packed 4-bit weight has fewer entries than parameters.
    entries = {m.weight: m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    total = sum(entries.get(p, p.numel()) for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = len(plan)
    warmup = training.warmup(steps)
    end = "max_steps" if steps == training.max_steps else "epochs"
    lines = [
        f"{base.name} in {base.precision}, {len(adapted_layers(model))} layers adapted: {adapter.summary()}",
        f"{trainable:,} trainable parameters of {total:,} ({trainable / total:.3%})",
        f"{steps:,} steps of {training.global_batch_size} rows (by training.{end}), learning rate"
        f" {training.learning_rate:g}, {training.schedule} after {warmup} warm-up steps",
    ]
    if warmup >= steps:
        lines.append(f"note: training.warmup_steps = {warmup:,} of {steps:,} steps: the learning rate only rises")
    return lines


def packages(recipe: Recipe) -> dict[str, str]:
    """Versions of the packages that compute. On a GPU an installed Liger-Kernel is included, even if it fails."""
    versions = identity.packages(*adapters_of(recipe).packages, quantized=recipe.model.quantization is not None)
    if gpus() and liger.is_installed():
        name = packages_distributions()["liger_kernel"][0]  # or its nightly
        versions[name] = version(name)
    return {"moslora": __version__, **versions}


def hardware(device: torch.device) -> dict[str, Any]:
    """Name of ``device``, its memory in GB, this process's CPU threads or the CUDA version, and the system."""
    facts: dict[str, Any] = {"device": device_name(device), "memory_gb": round(total_memory(device) / 1e9, 1)}
    if device.type == "cpu":
        facts["threads"] = torch.get_num_threads()
    else:
        facts["cuda"] = torch.version.cuda
    facts["system"] = platform.platform()
    return facts


def kernels(model: PreTrainedModel, device: torch.device) -> dict[str, str | None]:
    """Kernels chosen for each piece of the model; ``None`` for a piece that the model lacks."""
    beginnings = "once" if shares_beginnings(model, training=True) else "in each row"
    chosen: dict[str, str | None] = {
        "attention": None,
        "frozen layers": linear.kernel(device, model.dtype),
        "norm": "transformers'",
        "RoPE": "transformers'",
        "MLP": "transformers'",
        "dropout": None,
        "common beginning of rows": beginnings,
    }
    engine = engine_of(model)
    if engine.pads:
        pieces = getattr(model, "moslora_pieces", ())
        ours = ", ".join(pieces) or "none"
        return {**dict.fromkeys(chosen, "transformers'"), "ours": ours, "common beginning of rows": "in each row"}
    by_liger = liger.supports(torch.empty(0, device=device, dtype=model.dtype))
    of_attention = set()
    for module in model.modules():
        for name in ("head_dim", "head_size"):
            size = getattr(module, name, None)
            if isinstance(size, int):
                of_attention.add(attention.kernel(device, model.dtype, size))
        if isinstance(module, norm.RMSNorm):
            chosen["norm"] = norm.kernel(device)
        elif isinstance(module, RotaryAttention):
            chosen["RoPE"] = "Liger" if by_liger else "in three passes"
        elif isinstance(module, GatedMLP):
            chosen["MLP"] = "activation computed again, Liger" if by_liger else "activation computed again"
        elif isinstance(module, Dropout) and module.p:
            chosen["dropout"] = Dropout.kernel(torch.empty(0, device=device, dtype=model.dtype))
    if disabled_kernels():
        chosen[VARIABLE] = ",".join(sorted(disabled_kernels()))
    if of_attention:
        chosen["attention"] = ", ".join(sorted(of_attention))
    return chosen


def strategy(objective: nn.Module) -> dict[str, Any]:
    """Strategy, and share of the frozen weights in this process, both read from the model."""
    frozen = [parameter for parameter in objective.parameters() if not parameter.requires_grad]
    held = 0
    kind = "ddp"
    for parameter in frozen:
        own: Tensor = parameter
        if isinstance(parameter, DTensor):
            kind = "fsdp"
            own = parameter.to_local()
        held += own.numel()
    strategy = kind if group_size() > 1 else None
    total = sum(parameter.numel() for parameter in frozen)
    return {"strategy": strategy, "frozen_share": round(held / total, 4)}


def record_outcome(run: Run) -> None:
    """Add a finished run's time and memory, and the choice of its validations, to its card, if they are missing."""
    logged = [row for row in run.metrics if "seconds" in row]
    if logged and "seconds" not in run.facts:
        manifest = read_manifest(run.result)
        chosen = {key: manifest[key] for key in (BEST, TRAINED_STEPS) if key in manifest}
        peak = max(row["peak_memory_gb"] for row in logged)
        run.add_facts(seconds=logged[-1]["seconds"], peak_memory_gb=peak, **chosen)
