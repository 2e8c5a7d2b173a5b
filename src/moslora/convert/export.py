"""Adapters written for other libraries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from moslora.adapters import LoraPair
from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.convert.card import public_name, write_card
from moslora.convert.pairs import fixed_task, lora_pairs
from moslora.files import new_folder, write_json
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import load_without_base, open_adapter

OTHER_WEIGHTS = (
    " It was trained on the Q4_1 quantisation of the hub's weights, and gives the same logits only on the folder that"
    f" `python -c \"from moslora.base.resolve import locate; print(locate('{BUILTIN}'))\"` prints."
)
"""Of an adapter of the built-in model."""


def export_peft(
    adapter: Path, *, out: Path, task: str | None = None, compact: bool = False, trust_remote_code: bool = False
) -> Path:
    """Writes the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW.

    The rank is M's rank_out, r/k for a butterfly, 2r for a PiSSA start (whose part of the base is subtracted again),
    and ``lora_alpha`` is set so that lora_alpha / r stays the scale s. DoRA's magnitudes are written as PEFT has them.
    ``task`` fixes a task gate. ``compact`` drops each layer's rows of zeros, such as those AdaLoRA pruned; the ranks
    are then in PEFT's ``rank_pattern`` and ``alpha_pattern``, which not every reader supports.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    task = fixed_task(folder, task)
    base = folder.recipe.model.name
    with new_folder(out) as scratch:
        model = load_without_base(folder)
        pairs = lora_pairs(folder, model, task=task)
        if compact:
            pairs = {name: pair.compact() for name, pair in pairs.items()}
        save_file(_peft_tensors(pairs), scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = _peft_settings(pairs, folder.recipe, target_modules=_target_modules(model, list(pairs)))
        write_json(scratch / "adapter_config.json", settings)
        use = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{public_name(base)}")\n'
            f'model = PeftModel.from_pretrained(base, "{out.resolve().name}")'
        )
        proof = "The mixer is folded into `lora_A` exactly (B · (M · A)); the scale is unchanged."
        proof += OTHER_WEIGHTS if base == BUILTIN else ""
        write_card(scratch, folder, kind="A LoRA adapter", task=task, use=use, proof=proof)
    return out


def _peft_tensors(pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.contiguous()
        if pair.magnitude is not None:
            tensors[f"base_model.model.{name}.lora_magnitude_vector"] = pair.magnitude
    return tensors


def _peft_settings(pairs: Mapping[str, LoraPair], recipe: Recipe, *, target_modules: list[str]) -> dict[str, Any]:
    """PEFT's ``adapter_config.json``: the largest rank, and a pattern for the layers that have another."""
    first = next(iter(pairs.values()))
    ranks = {name: len(pair.a) for name, pair in pairs.items()}
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BUILTIN_ON_THE_HUB if recipe.model.name == BUILTIN else recipe.model.name,
        "revision": recipe.model.revision,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "rank_pattern": others,
        "alpha_pattern": {name: first.scale * own for name, own in others.items()},
        "use_dora": first.magnitude is not None,
        "lora_dropout": recipe.adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": target_modules,
    }


def _target_modules(model: nn.Module, adapted: list[str]) -> list[str]:
    """The last components of the adapted layers' names; the whole names where other layers share a component."""
    components = {name.rpartition(".")[2] for name in adapted}
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in components]
    return sorted(components if len(meant) == len(adapted) else adapted)
