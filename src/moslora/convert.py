"""Adapters in the formats of others."""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from moslora.card import public_name, write_card
from moslora.checkpoint import load_adapted, open_adapter, refuse_used, replacing, write_json
from moslora.folded import lora_pairs


def export_peft(adapter: Path, *, out: Path, task: str | None = None, compact: bool = False) -> Path:
    """Writes the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW.

    Whatever reads PEFT adapters (PEFT, vLLM, converters) reads it; nothing in it tells of a mixer. The rank is M's
    rank_out, r/k for a butterfly, 2r for a PiSSA start (whose part of the base is taken off again), and ``lora_alpha``
    is set so that lora_alpha / r stays the scale s. DoRA's magnitudes are written as PEFT has them.

    Args:
        adapter: an adapter folder.
        out: must not exist yet, or be empty.
        task: the one that a task gate is fixed to.
        compact: leave out rows that are zero, such as AdaLoRA's dropped ones, each layer by itself; the ranks then
            stand in PEFT's ``rank_pattern`` and ``alpha_pattern``, which not every reader knows.

    Raises:
        UsageError: ``out`` is in use, the base is not the adapter's, or the mixer is no single matrix.
    """
    folder = open_adapter(adapter)
    refuse_used(out)
    model = load_adapted(folder)
    pairs = lora_pairs(model, path=folder.path, task=task)
    if compact:
        pairs = {name: pair.compact() for name, pair in pairs.items()}
    first = next(iter(pairs.values()))
    rank = max(pair.a.shape[0] for pair in pairs.values())
    others = {name: pair.a.shape[0] for name, pair in pairs.items() if pair.a.shape[0] != rank}
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.contiguous()
        if pair.magnitude is not None:
            tensors[f"base_model.model.{name}.lora_magnitude_vector"] = pair.magnitude
    recipe = folder.recipe
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": public_name(recipe.model.name),
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
