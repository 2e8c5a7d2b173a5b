"""Adapters in the formats of others."""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from moslora.adapters import fold, named_adapters
from moslora.card import public_name, write_card
from moslora.checkpoint import load_adapted, open_adapter, refuse_used, replacing, write_json


def export_peft(adapter: Path, *, out: Path) -> Path:
    """Writes the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW.

    Whatever reads PEFT adapters (PEFT, vLLM, converters) reads it; nothing in it tells of a mixer. The rank is M's
    rank_out, r/k for a butterfly, and ``lora_alpha`` is set so that lora_alpha / r stays the scale s.

    Raises:
        UsageError: ``out`` is in use, or the base is not the adapter's.
    """
    folder = open_adapter(adapter)
    refuse_used(out)
    model = load_adapted(folder)
    pairs = {name: fold(layer) for name, layer in named_adapters(model)}
    first = next(iter(pairs.values()))
    rank = first.a.shape[0]
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.contiguous()
    recipe = folder.recipe
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": public_name(recipe.model.name),
        "revision": recipe.model.revision,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": recipe.adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _target_modules(model, list(pairs)),
    }
    with replacing(out) as scratch:
        save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(scratch / "adapter_config.json", config)
        write_card(
            scratch,
            folder,
            kind="A LoRA adapter",
            use=(
                "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
                f'base = AutoModelForCausalLM.from_pretrained("{public_name(recipe.model.name)}")\n'
                f'model = PeftModel.from_pretrained(base, "{out.name}")'
            ),
            proof="The mixer is folded into `lora_A` exactly (B · (M · A)); the scale is unchanged.",
        )
    return out


def _target_modules(model: nn.Module, adapted: list[str]) -> list[str]:
    """The adapted layers' last name components, which every reader knows, or their whole names if those say more."""
    components = {name.rpartition(".")[2] for name in adapted}
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in components]
    return sorted(components if len(meant) == len(adapted) else adapted)
