"""Whether a training can continue the adapter that its recipe names. Importing this does not load torch."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moslora.base.identity import fingerprint
from moslora.base.resolve import available_offline
from moslora.errors import UsageError
from moslora.recipe import Adapter, ModelSection, PeftSection, Recipe
from moslora.recipe.yaml_text import render_inline
from moslora.runs.lineage import Predecessor
from moslora.runs.manifest import read_checked
from moslora.runs.peft_files import has_adapter_files
from moslora.runs.predecessor import locate_predecessor, own_predecessor, peft_predecessor

FREE = ("continue_from", "dropout", "trains")
"""Keys of an adapter's section that say nothing of its weights, and may have other values in a run that continues."""


def check_predecessor(recipe: Recipe) -> Predecessor | None:
    """The adapter that ``recipe`` continues; ``None`` if it starts at the base.

    One of ours must fit. Whether one in PEFT's format does, and the base, is seen when the weights are read, which
    needs torch (`moslora.runs.continued`); where something else does not fit, a base that is here is looked at too.
    """
    place = recipe.adapter.continue_from
    if place is None:
        return None
    folder = locate_predecessor(place)
    if has_adapter_files(folder):
        return peft_predecessor(folder)
    then, manifest = read_checked(folder)
    found = differences(then, recipe)
    if found and has_weights_here(recipe.model):
        found |= other_base(manifest["base"], recipe.model)
    refuse_differences(folder, found)
    return own_predecessor(folder, manifest, gated_by_task=then.adapter.gated_by_task)


def has_weights_here(model: ModelSection) -> bool:
    """Whether the base can be looked at without a download."""
    folder = available_offline(model.name, revision=model.revision)
    return folder is not None and any(folder.glob("*.safetensors"))


def differences(then: Recipe, now: Recipe) -> dict[str, str]:
    """`section_differences` of two recipes, and the tasks that a gate knows."""
    found = section_differences(then.adapter, now.adapter)
    both_gated = then.adapter.gated_by_task and now.adapter.gated_by_task
    if both_gated and then.data.tasks != now.data.tasks:
        found |= changed_values({"data.tasks": list(then.data.tasks)}, {"data.tasks": list(now.data.tasks)})
    return found


def section_differences(then: Adapter, now: Adapter) -> dict[str, str]:
    """The keys in which an adapter's section is not what it was: ``key was …, is …`` -> the override that restores it.

    The fields of one method of PEFT are left out, as their defaults are not known here.
    """
    before = _comparable(then)
    after = _comparable(now)
    if is_one_method_of_peft(then, now):
        del before["adapter.peft"]
    return changed_values(before, after)


def is_one_method_of_peft(one: Adapter, other: Adapter) -> bool:
    """Whether both are the same method of PEFT, whatever its fields."""
    if isinstance(one, PeftSection) and isinstance(other, PeftSection):
        return one.peft.peft_type == other.peft.peft_type
    return False


def _comparable(section: Adapter) -> dict[str, Any]:
    """What must fit, by dotted key; a list of layers has no order."""
    values = section.model_dump(mode="json", exclude={*FREE})
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    return {f"adapter.{key}": value for key, value in values.items()}


def changed_values(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """``key was …, is …`` -> the override that restores it, for each key of ``then`` that is something else ``now``."""
    found = {}
    for key, was in then.items():
        value = now.get(key)
        if value != was:
            said = f"{key} was {render_inline(was)}, is {render_inline(value)}"
            found[said] = shlex.quote(f"{key}={render_inline(was)}")
    return found


def other_base(then: Mapping[str, Any], model: ModelSection) -> dict[str, str]:
    """As `changed_values`, for a base that is not the one that ``then``, of a manifest, names; empty if it is. No
    override restores one whose files were changed."""
    found = fingerprint(model.name, revision=model.revision)
    if found == then["fingerprint"]:
        return {}
    hashes = f"fingerprint was {then['fingerprint']}, is {found}"
    revision = then.get("revision", model.revision)  # which an export does not have
    if model.name == then["name"] and model.revision != revision:
        return changed_values({"model.revision": revision}, {"model.revision": model.revision})
    if model.name == then["name"]:
        return {f"the base has changed since ({hashes}); restore it, or pin the hub's with model.revision": ""}
    return {
        f"model.name was {then['name']}, is {model.name}, another base ({hashes})": shlex.quote(
            f"model.name={then['name']}"
        )
    }


def refuse_differences(folder: Path, found: Mapping[str, str]) -> None:
    """Refuses to continue the adapter in ``folder`` if there are differences: all in one line, with the fix."""
    if found:
        said = "; ".join(found)
        overrides = [override for override in found.values() if override]
        if overrides:
            said += f"; to continue it: {' '.join(overrides)}"
        raise UsageError(f"adapter.continue_from = {folder}: {said}")
