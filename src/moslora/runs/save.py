"""Saving of a model that `moslora.inject` has changed, as an adapter folder."""

from pathlib import Path
from typing import Any

from transformers import BitsAndBytesConfig, PreTrainedModel

from moslora.adapters import AdapterLinear, adapter_state_dict, context_of, task_names
from moslora.errors import UsageError, some
from moslora.files import in_use, once_per_machine
from moslora.recipe import stack_recipe
from moslora.runs.adapted_model import save_adapter
from moslora.runs.manifest import MANIFEST, RECIPE, WEIGHTS


def save(model: PreTrainedModel, folder: str | Path, *, base: str | None = None) -> None:
    """Write the adapters of ``model`` as a folder that :func:`moslora.load` and the commands take, replacing an older
    one: ``lora_a (r, in)``, M and ``lora_b (out, r)`` of each layer, the options of `inject` as a recipe, and the
    fingerprint of ``base``, a hub id or folder; by default that from which transformers loaded the weights.

    >>> moslora.save(model, "runs/mine")

    Raises:
        UsageError: an option or a base that no recipe can have; or ``folder`` has files besides an older adapter's.
    """
    folder = Path(folder)
    context = context_of(model)
    name = base or model.config.name_or_path
    if context.options is None or not name or isinstance(model.get_output_embeddings(), AdapterLinear):
        needs = "the adapters of moslora.inject, none on its output layer, and the name of its base (base=…)"
        raise UsageError(f"{folder}: to be saved, a model needs {needs}")
    used = in_use(folder, older=(WEIGHTS, RECIPE, MANIFEST))
    if used:
        raise UsageError(f"{folder}: not empty ({some(used)}); save to another folder, or remove what is there")
    revision = getattr(model.config, "_commit_hash", None) if base is None else None
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    section = {"name": name, "revision": revision, "dtype": dtype, **_quantization(model, folder)}
    data = {"tasks": list(task_names(model))} if context.options.mixer.kind == "task-gate" else {}
    adapter = context.options.model_dump(mode="json", exclude={"continue_from"})
    values = {"seed": context.seed, "model": section, "adapter": adapter, "data": data}
    recipe = stack_recipe([("moslora.save", values)], name=f"{folder.resolve().name}.yaml", folder=Path())
    with once_per_machine(folder):
        save_adapter(folder, {WEIGHTS: adapter_state_dict(model)}, recipe, facts={"data": data} if data else {})


def _quantization(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Keys of a recipe that quantise a base like that of ``model``; empty if it is not quantised."""
    config = getattr(model.config, "quantization_config", None)
    if not config:
        return {}
    if not isinstance(config, BitsAndBytesConfig):
        raise UsageError(
            f"{folder}: its base is quantised by another method than bitsandbytes; inject into the unquantised base"
        )
    if config.load_in_8bit:
        return {"quantization": "int8"}
    return {"quantization": config.bnb_4bit_quant_type, "double_quantization": config.bnb_4bit_use_double_quant}
