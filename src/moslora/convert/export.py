"""Adapters as plain LoRA pairs, and written in PEFT's format."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import LoraPair, NotMergeable, build_mixer, describe_task, fold, has_learned, named_adapters
from moslora.base.adapted import config_of
from moslora.base.load import load_tokenizer
from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.convert.card import THIS_FOLDER, Made, base_in_code, public_name, write_card
from moslora.errors import MosloraError, UsageError
from moslora.files import new_folder, write_json
from moslora.recipe import AdapterSection, PeftSection, Recipe
from moslora.runs.adapter_folder import AdapterFolder, load_without_base, open_adapter
from moslora.runs.evaluation_defaults import write_evaluation_defaults
from moslora.runs.origin import origin_of, write_origin


def refuse_unfoldable(folder: AdapterFolder, task: str | None) -> None:
    """Refuses an adapter without a single ΔW. A task gate has one for each ``task`` that it was trained on."""
    section = folder.recipe.adapter
    gated = section.gated_by_task
    if task is None and isinstance(section, AdapterSection):
        try:
            build_mixer(rank=section.rank, in_features=1, **folder.recipe.adapter_options()["mixer"]).matrix()
        except NotMergeable as error:
            fix = "name one with --task" if gated else "evaluate the adapter folder itself"
            raise UsageError(f"{folder.path}: has no single weight: it has {error}; {fix}") from None
    elif task is not None and not gated:
        raise UsageError(f"{folder.path}: --task {task}: its adapter does not depend on the task; omit --task")
    elif task is not None:
        folder.refuse_untrained(task)


def lora_pairs(folder: AdapterFolder, model: PreTrainedModel, *, task: str | None) -> dict[str, LoraPair]:
    """The folded adapters of ``folder`` by layer. ``model`` has them, and computes for ``task`` from now on."""
    if not has_learned(model):
        raise MosloraError(f"{folder.path}: still as it started, with ΔW = 0 in every layer; choose a later checkpoint")
    if task is not None:
        describe_task(model, task)
    return {name: fold(layer) for name, layer in named_adapters(model)}


def export_peft(adapter: Path, *, out: Path, task: str | None = None, trust_remote_code: bool = False) -> Path:
    """Writes the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW. One of
    PEFT's methods is written as PEFT writes it.

    The rank is M's rank_out, r/k for a butterfly, 2r for a PiSSA start (whose part of the base is subtracted again),
    and ``lora_alpha`` is set so that lora_alpha / r stays the scale s. DoRA's magnitudes are written as PEFT has them.
    ``task`` fixes a task gate.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    refuse_unfoldable(folder, task)
    recipe, base = folder.recipe, folder.recipe.model.name
    place = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BUILTIN_ON_THE_HUB if base == BUILTIN else base,
        "revision": recipe.model.revision,
    }
    with new_folder(out) as scratch:
        if isinstance(recipe.adapter, PeftSection):
            tensors, config = folder.weights(), config_of(recipe.adapter).to_dict() | place | {"inference_mode": True}
            settings = {key: sorted(x) if isinstance(x, set) else x for key, x in config.items()}
            kind, proof = "An adapter", "The weights are those of the run, as PEFT saves them."
        else:
            tensors, settings = _as_lora(folder, recipe.adapter, place, task=task)
            kind = "A LoRA adapter"
            proof = "The mixer is folded into `lora_A` exactly (B · (M · A)); the scale is unchanged."
        save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(scratch / "adapter_config.json", settings)
        write_evaluation_defaults(scratch, recipe, dtype=recipe.model.dtype, task=task)
        known_as = BUILTIN if base == BUILTIN else public_name(base)
        write_origin(scratch, origin_of(folder, base=known_as))
        at = f', revision="{recipe.model.revision}"' if recipe.model.revision else ""
        use = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"place = {base_in_code(base)}  # of the base\n"
            f"base = AutoModelForCausalLM.from_pretrained(place{at})\n"
            f'model = PeftModel.from_pretrained(base, ".")  # {THIS_FOLDER}\n'
            f"tokenizer = AutoTokenizer.from_pretrained(place{at})"
        )
        if base == BUILTIN:
            proof += (
                " The logits are the same only on the Q4_1 quantisation of the hub's weights, in the folder that"
                f" `python -c \"from moslora.base.resolve import locate; print(locate('{BUILTIN}'))\"` prints."
            )
        made = Made(kind, scored="Of the adapter over its base", use=use, proof=proof, task=task)
        write_card(scratch, folder, made, tokenizer=_chat_tokenizer(recipe))
    return out


def _chat_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase | None:
    """The tokenizer whose template the prompts are in; ``None`` if they are in none, or it is not at hand."""
    if recipe.data.format != "chat":
        return None
    try:
        return load_tokenizer(recipe.model)
    except MosloraError:  # an export needs no more of its base than its shapes
        return None


def _as_lora(
    folder: AdapterFolder, section: AdapterSection, place: dict[str, Any], *, task: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and settings of an adapter of ours as PEFT's LoRA."""
    model = load_without_base(folder)
    pairs = lora_pairs(folder, model, task=task)
    tensors = {}
    for name, pair in pairs.items():
        parts = {"A.weight": pair.a, "B.weight": pair.b, "magnitude_vector": pair.magnitude}
        for part, value in parts.items():
            if value is not None:
                tensors[f"base_model.model.{name}.lora_{part}"] = value.contiguous()
    rank = len(pair.a)  # of the last layer, as of all
    components = {name.rpartition(".")[2] for name in pairs}
    same = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in components]
    return tensors, {
        "peft_type": "LORA",
        **place,
        "r": rank,
        "lora_alpha": pair.scale * rank,
        "use_dora": pair.magnitude is not None,
        "lora_dropout": section.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # The whole names where other layers share a component.
        "target_modules": sorted(components if len(same) == len(pairs) else pairs),
    }
