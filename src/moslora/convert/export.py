"""Adapters written for other libraries."""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.convert.card import public_name, write_card
from moslora.convert.pairs import lora_pairs, refuse_unfoldable
from moslora.files import new_folder, write_json
from moslora.runs.adapter_folder import load_without_base, open_adapter

OTHER_WEIGHTS = (
    " It was trained on the Q4_1 quantisation of the hub's weights, and gives the same logits only on the folder that"
    f" `python -c \"from moslora.base.resolve import locate; print(locate('{BUILTIN}'))\"` prints."
)
"""For an adapter of the built-in model."""


def export_peft(adapter: Path, *, out: Path, task: str | None = None, trust_remote_code: bool = False) -> Path:
    """Writes the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW.

    The rank is M's rank_out, r/k for a butterfly, 2r for a PiSSA start (whose part of the base is subtracted again),
    and ``lora_alpha`` is set so that lora_alpha / r stays the scale s. DoRA's magnitudes are written as PEFT has them.
    ``task`` fixes a task gate.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    refuse_unfoldable(folder, task)
    recipe, base = folder.recipe, folder.recipe.model.name
    with new_folder(out) as scratch:
        model = load_without_base(folder)
        pairs = lora_pairs(folder, model, task=task)
        tensors = {}
        for name, pair in pairs.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.contiguous()
            if pair.magnitude is not None:
                tensors[f"base_model.model.{name}.lora_magnitude_vector"] = pair.magnitude
        save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        rank = len(pair.a)  # of the last layer, as of all
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": BUILTIN_ON_THE_HUB if base == BUILTIN else base,
            "revision": recipe.model.revision,
            "r": rank,
            "lora_alpha": pair.scale * rank,
            "use_dora": pair.magnitude is not None,
            "lora_dropout": recipe.adapter.dropout,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": _target_modules(model, list(pairs)),
        }
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


def _target_modules(model: nn.Module, adapted: list[str]) -> list[str]:
    """The last components of the adapted layers' names; the whole names where other layers share a component."""
    components = {name.rpartition(".")[2] for name in adapted}
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in components]
    return sorted(components if len(meant) == len(adapted) else adapted)
