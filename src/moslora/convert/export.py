"""Adapters as plain LoRA pairs, and written in PEFT's format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import LoraPair, describe_task, fold, has_learned, named_adapters
from moslora.base.load import load_tokenizer
from moslora.base.peft_methods import config_of
from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.choices import FormatName
from moslora.console import note
from moslora.convert.card import PEFT_CONFIG, public_name, write_card
from moslora.errors import MosloraError, UsageError, some
from moslora.files import new_folder, write_json
from moslora.recipe import ModelSection, PeftSection
from moslora.runs.adapted_model import load_without_base
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.evaluation_defaults import write_evaluation_defaults
from moslora.runs.origin import origin_of, write_origin

LOST_BY_PEFT = (
    *("afmoe", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe", "glm4_moe_lite", "hunyuan_v1_moe", "laguna"),
    "solar_open",
)
"""Families with experts in which PEFT 0.21 takes an adapter of a plain MLP for one of the experts, and loads none."""

OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
"""The layers of an expert, and of a plain MLP, by the last component of their names."""


def refuse_unfoldable(folder: AdapterFolder, task: str | None) -> None:
    """Refuses an adapter without a single ΔW. A task gate has one for each ``task`` that it was trained on."""
    section = folder.recipe.adapter
    if task is not None:
        if not section.gated_by_task:
            raise UsageError(f"{folder.path}: --task {task}: its adapter does not depend on the task; omit --task")
        folder.refuse_untrained(task)
    elif section.mixer is not None and section.mixer.routes:  # PEFT's have none
        fix = "name one with --task" if section.gated_by_task else "evaluate the adapter folder itself"
        raise UsageError(
            f"{folder.path}: cannot be folded into one weight: M of a {section.mixer.kind} depends on the token or the"
            f" task; {fix}"
        )


def lora_pairs(model: PreTrainedModel, name: str) -> dict[str, LoraPair]:
    """The folded adapters of ``model`` by layer; ``name`` is what an error calls them."""
    if not has_learned(model):
        raise MosloraError(f"{name}: has learned nothing yet, ΔW = 0 in every layer; choose a later checkpoint")
    return {layer_name: fold(layer) for layer_name, layer in named_adapters(model)}


@dataclass(frozen=True)
class Exported:
    """An adapter in PEFT's format, and what is known of it."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    proof: str


def export_peft(adapter: Path, *, out: Path, task: str | None = None, trust_remote_code: bool = False) -> Path:
    """Writes the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW. One of
    PEFT's methods is written as PEFT writes it.

    The rank is M's rank_out, r/k for a butterfly, 2r for a PiSSA start (whose part of the base is subtracted again),
    and ``lora_alpha`` is set so that lora_alpha / r stays the scale s. DoRA's magnitudes are written as PEFT has them.
    ``task`` fixes a task gate.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    refuse_unfoldable(folder, task)
    recipe = folder.recipe
    with new_folder(out) as scratch:
        if isinstance(recipe.adapter, PeftSection):
            exported = _as_peft_saves_it(folder, recipe.adapter)
        else:
            exported = _as_lora(folder, dropout=recipe.adapter.dropout, task=task)
        save_file(exported.tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(scratch / PEFT_CONFIG, exported.settings)
        write_evaluation_defaults(scratch, recipe, dtype=recipe.model.dtype, task=task)
        origin = origin_of(folder, base=_known_as(recipe.model.name))
        write_origin(scratch, origin)
        tokenizer = _chat_tokenizer(recipe.model, recipe.data.format)
        write_card(scratch, folder, origin=origin, proof=exported.proof, task=task, tokenizer=tokenizer)
    return out


def _known_as(base: str) -> str:
    """The name of a base to others who have moslora."""
    if base == BUILTIN:
        return BUILTIN
    return public_name(base)


def _chat_tokenizer(base: ModelSection, format: FormatName) -> PreTrainedTokenizerBase | None:
    """The tokenizer whose template the prompts are in; ``None`` if they are in none, or it is not at hand."""
    if format != "chat":
        return None
    try:
        return load_tokenizer(base)
    except MosloraError:  # an export needs no more of its base than its shapes
        return None


def _place(base: ModelSection) -> dict[str, Any]:
    """The settings that say what an adapter belongs to."""
    name = base.name
    if name == BUILTIN:
        name = BUILTIN_ON_THE_HUB
    return {"task_type": "CAUSAL_LM", "base_model_name_or_path": name, "revision": base.revision}


def _as_peft_saves_it(folder: AdapterFolder, section: PeftSection) -> Exported:
    """An adapter of one of PEFT's methods."""
    config = {**config_of(section).to_dict(), **_place(folder.recipe.model), "inference_mode": True}
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, set):
            value = sorted(value)
        settings[key] = value
    proof = "The weights are those of the run, as PEFT saves them."
    return Exported(folder.weights(), settings, proof=proof)


def _as_lora(folder: AdapterFolder, *, dropout: float, task: str | None) -> Exported:
    """An adapter of ours, as PEFT's LoRA."""
    model = load_without_base(folder)
    if task is not None:
        describe_task(model, task)
    pairs = lora_pairs(model, str(folder.path))
    lost = _lost_by_peft(model)
    if lost:
        note(f"PEFT mistakes the adapters of {some(lost)} for those of experts and loads none; merge instead")
    tensors: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.contiguous()
        if pair.magnitude is not None:
            tensors[f"base_model.model.{name}.lora_magnitude_vector"] = pair.magnitude.contiguous()
    rank = len(pair.a)  # of the last layer, as of all
    settings = {
        "peft_type": "LORA",
        **_place(folder.recipe.model),
        "r": rank,
        "lora_alpha": pair.scale * rank,
        "use_dora": pair.magnitude is not None,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _target_modules(model, list(pairs)),
    }
    proof = "The mixer is folded into `lora_A` exactly (B · (M · A)); the scale is unchanged."
    return Exported(tensors, settings, proof=proof)


def _target_modules(model: nn.Module, adapted: list[str]) -> list[str]:
    """The last components of the adapted layers' names; the whole names where other layers share a component."""
    components = {name.rpartition(".")[2] for name in adapted}
    same = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in components]
    if len(same) == len(adapted):
        return sorted(components)
    return sorted(adapted)


def _lost_by_peft(model: PreTrainedModel) -> list[str]:
    """The adapted layers for which PEFT loads nothing."""
    if model.config.model_type not in LOST_BY_PEFT:
        return []
    return [name for name, _ in named_adapters(model) if name.rpartition(".")[2] in OF_EXPERTS]
