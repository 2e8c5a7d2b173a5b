"""Adapters as plain LoRA pairs, written in PEFT's format or as GGUF for llama.cpp."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from moslora.adapters import LoraPair, fold, has_learned, named_adapters
from moslora.base.load import load_tokenizer
from moslora.base.peft_methods import config_of
from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.base.shapes import read_config
from moslora.console import note
from moslora.convert.card import PEFT_CONFIG, public_name, write_card
from moslora.convert.vllm_names import name_for_vllm, patterns_of
from moslora.errors import MosloraError, UsageError, some
from moslora.files import new_folder, write_json
from moslora.recipe import ModelSection, PeftSection
from moslora.runs.adapted_model import load_without_base
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.evaluation_defaults import write_evaluation_defaults
from moslora.runs.origin import write_origin

PREFIX = "base_model.model."
"""Beginning of PEFT's name of a weight, before the name of the layer."""

LOST_BY_PEFT = (
    *("afmoe", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe", "glm4_moe_lite", "hunyuan_v1_moe", "laguna"),
    "solar_open",
)
"""Model types with experts in which PEFT 0.21 mistakes adapters of a plain MLP for those of experts and loads none."""

OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
"""Last components of the names of an MLP's layers, be it an expert or a plain MLP."""


def refuse_unfoldable(folder: AdapterFolder, task: str | None) -> None:
    """Refuse an adapter whose ΔW depends on the token or the task, unless ``task`` names one that its gate learned.

    Also refuse a ``task`` for an adapter without a task gate.
    """
    section = folder.recipe.adapter
    if task is not None:
        if not section.gated_by_task:
            raise UsageError(f"{folder.path}: --task {task}: its adapter does not depend on the task; omit --task")
        folder.refuse_untrained(task)
    elif section.mixer is not None and section.mixer.routes:  # PEFT's have none
        fix = "name one with --task" if section.gated_by_task else "evaluate the adapter folder itself"
        raise UsageError(
            f"{folder.path}: cannot be folded into one weight: its mixer, {section.mixer.kind}, depends on the token"
            f" or the task; {fix}"
        )


def lora_pairs(model: PreTrainedModel, name: str) -> dict[str, LoraPair]:
    """Fold the adapters of ``model``, by layer. ``name`` names the adapter in an error."""
    if not has_learned(model):
        raise MosloraError(f"{name}: has learned nothing yet, ΔW = 0 in every layer; choose a later checkpoint")
    return {layer_name: fold(layer) for layer_name, layer in named_adapters(model)}


def export_peft(
    adapter: Path,
    *,
    out: Path,
    task: str | None = None,
    for_vllm: bool = False,
    converter: Path | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW.

    The rank is M's rank_out, r/k for a butterfly, 2r for a PiSSA start (whose part of the base is subtracted again),
    and ``lora_alpha`` is set so that lora_alpha / r stays the scale s. DoRA's magnitudes are written as PEFT has them.
    An adapter of a PEFT method is written as PEFT writes it.
    ``task`` fixes a task gate. ``for_vllm``: the modules have names that vLLM knows, and PEFT may not.
    ``converter`` is llama.cpp's script, which writes ``adapter.gguf`` beside the weights.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    refuse_unfoldable(folder, task)
    recipe = folder.recipe
    base = recipe.model.name
    with new_folder(out) as scratch:
        if isinstance(recipe.adapter, PeftSection):
            tensors = folder.weights()
            settings = config_of(recipe.adapter).to_dict()
            proof = "The weights are those of the run, as PEFT saves them."
        else:
            tensors, settings = _as_lora(folder, dropout=recipe.adapter.dropout, task=task)
            proof = "The mixer is folded into `lora_A` exactly (B · (M · A)); the scale is unchanged."
        if for_vllm:
            patterns = patterns_of(read_config(recipe.model))
            tensors = {_for_vllm(name, patterns): tensor for name, tensor in tensors.items()}
            settings["target_modules"] = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in tensors})
        settings |= {
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": BUILTIN_ON_THE_HUB if base == BUILTIN else base,
            "revision": recipe.model.revision,
            "inference_mode": True,
        }
        save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        listed = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
        write_json(scratch / PEFT_CONFIG, listed)
        if converter is not None:
            _write_gguf(scratch, recipe.model, converter)
        write_evaluation_defaults(scratch, recipe, dtype=recipe.model.dtype, task=task)
        origin = folder.origin_for(base if base == BUILTIN else public_name(base))
        write_origin(scratch, origin)
        tokenizer = None
        if recipe.data.format == "chat":
            with suppress(MosloraError):  # an export needs no more of its base than its shapes
                tokenizer = load_tokenizer(recipe.model)
        write_card(scratch, folder, origin=origin, proof=proof, task=task, tokenizer=tokenizer)
    return out


def _write_gguf(folder: Path, section: ModelSection, converter: Path) -> None:
    """Have llama.cpp's ``converter`` write the adapter in ``folder`` as GGUF, by the base's configuration."""
    with TemporaryDirectory() as base:
        read_config(section).save_pretrained(base)
        options = ["--base", base, "--outfile", str(folder / "adapter.gguf")]
        command = [sys.executable, str(converter), str(folder), *options]
        ran = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if ran.returncode != 0:
        reason = ran.stderr.strip().rpartition("\n")[2] or f"exit code {ran.returncode}"
        raise MosloraError(f"{converter}: {reason}; nothing was written")


def _for_vllm(key: str, patterns: Sequence[str]) -> str:
    """Rename the layer in PEFT's name of a weight to vLLM's name of it."""
    layer, mark, kind = key.removeprefix(PREFIX).partition(".lora_")
    return f"{PREFIX}{name_for_vllm(layer, patterns)}{mark}{kind}"


def _as_lora(folder: AdapterFolder, *, dropout: float, task: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings of PEFT's LoRA for an adapter of A, M and B."""
    model = load_without_base(folder, task=task)
    pairs = lora_pairs(model, str(folder.path))
    lost = [name for name in pairs if name.rpartition(".")[2] in OF_EXPERTS]
    if lost and model.config.model_type in LOST_BY_PEFT:
        note(
            f"exported, but PEFT will load nothing of this: it mistakes the adapters of {some(lost)} for adapters of"
            " experts; use moslora merge"
        )
    tensors: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pair.b.contiguous()
        if pair.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = pair.magnitude.contiguous()
    rank = len(pair.a)  # the same in all layers
    # Last components of the adapted layers' names, or whole names if other layers share a component.
    components = sorted({name.rpartition(".")[2] for name in pairs})
    alike = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in components]
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": pair.scale * rank,
        "use_dora": pair.magnitude is not None,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": components if len(alike) == len(pairs) else sorted(pairs),
    }
    return tensors, settings
