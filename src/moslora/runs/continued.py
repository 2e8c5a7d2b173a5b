"""The weights with which a training starts that continues another adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from moslora.base.identity import fingerprint
from moslora.base.peft_methods import KIND, is_drawn_from_the_base, settings_in, settings_of
from moslora.base.resolve import available_offline
from moslora.console import note_once
from moslora.errors import UsageError
from moslora.recipe import AdapterSection, ModelSection, PeftSection, Recipe
from moslora.recipe.builtin import printable
from moslora.recipe.yaml_text import render_inline
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.origin import Origin, origin_of
from moslora.runs.peft_adapter import load_weights, own_section, own_state, read_layers, read_settings
from moslora.runs.peft_files import adapter_files, has_adapter_files
from moslora.runs.predecessor import locate_predecessor, origin_of_peft

FREE = ("continue_from", "dropout", "trains")
"""Keys of an adapter's section that say nothing of its weights, and may have other values in a run that continues."""


@dataclass(frozen=True)
class Continued:
    """An adapter that fits the recipe of the run that continues it.

    Attributes:
        path: its folder.
        predecessor: what the run keeps of it.
        state: its weights by the names that they have in the run.
    """

    path: Path
    predecessor: Origin
    state: Mapping[str, Tensor]

    def weights(self) -> Mapping[str, Tensor]:
        """As those of `moslora.runs.adapter_folder.AdapterFolder`."""
        return self.state


def read_continued(recipe: Recipe, *, begun_with: Origin | None = None, fetching: bool = True) -> Continued | None:
    """The adapter that ``recipe`` continues; ``None`` if it starts at the base.

    Args:
        recipe: of the run that continues it.
        begun_with: what the run started with before it was stopped, or when it was made, which must be the same now.
        fetching: whether the base is downloaded to be compared; if not, it is compared only if it is here.

    Raises:
        UsageError: it is not there, or does not fit: all differences in one line, and how to restore what was.
        MosloraError: a file is damaged.
    """
    place = recipe.adapter.continue_from
    if place is None:
        return None
    folder = locate_predecessor(place)
    if has_adapter_files(folder):
        continued = _of_peft(folder, recipe, fetching=fetching)
    else:
        continued = _own(folder, recipe, fetching=fetching)
    if begun_with is not None and begun_with.adapter != continued.predecessor.adapter:
        raise UsageError(
            f"adapter.continue_from = {folder}: has other weights than the run began with; restore them, or start a new"
            " run with name=… or --out"
        )
    return continued


def _own(folder: Path, recipe: Recipe, *, fetching: bool) -> Continued:
    """An adapter of ours, or a method of PEFT that was trained here."""
    adapter = open_adapter(folder)
    now = {**_comparable(recipe), "seed": recipe.seed, "data.tasks": list(recipe.data.tasks)}
    found = _changed_values(_comparable(adapter.recipe), now)
    if (fetching and not found) or _is_here(recipe.model):
        found += other_base(adapter.manifest["base"], recipe.model)
    _refuse_differences(folder, found)
    return Continued(folder, replace(origin_of(adapter), run=adapter.run.name, steps=None), adapter.weights())


def _of_peft(folder: Path, recipe: Recipe, *, fetching: bool) -> Continued:
    """An adapter in PEFT's format, as a method of PEFT or as one of ours."""
    if isinstance(recipe.adapter, PeftSection):
        state = _state_of_method(folder, recipe.adapter)
    else:
        state = _state_of_lora(folder, recipe.adapter)
    origin = origin_of_peft(folder)  # an export has the fingerprint of its base; of others only the name is known
    config, _ = adapter_files(folder)
    model = recipe.model
    named = json.loads(config.read_bytes()).get("base_model_name_or_path")
    if not origin.fingerprint and named and named != model.name:
        note_once(
            f"{folder}: names {printable(str(named))} as its base, but continues over {model.name}; both must have the"
            " same weights"
        )
    elif origin.fingerprint and (fetching or _is_here(model)):
        then = {"name": origin.base, "fingerprint": origin.fingerprint}
        _refuse_differences(folder, other_base(then, model))
    return Continued(folder, origin, state)


def _is_here(model: ModelSection) -> bool:
    """Whether the base can be looked at without a download."""
    folder = available_offline(model.name, revision=model.revision)
    return folder is not None and any(folder.glob("*.safetensors"))


def _state_of_method(folder: Path, section: PeftSection) -> Mapping[str, Tensor]:
    """The weights of a method of PEFT, in PEFT's format."""
    config, weights = adapter_files(folder)
    then = settings_in(config)
    _refuse_differences(folder, _changed_values(then, settings_of(section)))
    if is_drawn_from_the_base(then):
        raise UsageError(
            f"adapter.continue_from = {folder}: its start split the base at random, and its files do not say how; have"
            " PEFT convert it to a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    return load_weights(weights)


def _state_of_lora(folder: Path, section: AdapterSection) -> Mapping[str, Tensor]:
    """The weights of a LoRA in PEFT's format, as an adapter of ours."""
    config, weights = adapter_files(folder)
    try:
        settings = read_settings(config)
    except UsageError as error:
        fix = "if it is PEFT's own, set adapter.peft with its peft_type (docs/peft.md)"
        raise UsageError(f"{error}; cannot be continued as an adapter of A, M and B; {fix}") from None
    layers = read_layers(weights, targets=settings.target_modules)
    then = AdapterSection.model_validate(own_section(settings, layers))
    _refuse_differences(folder, _changed_values(_values(then), _values(section)))
    return own_state(layers)


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """What must fit, by dotted key: the section of the adapter, of a gate its tasks, and of a method of PEFT that split
    the base by the seed, that."""
    if isinstance(recipe.adapter, PeftSection):
        values = settings_of(recipe.adapter)
        if is_drawn_from_the_base(values):
            values["seed"] = recipe.seed
        return values
    values = _values(recipe.adapter)
    if recipe.adapter.gated_by_task:
        values["data.tasks"] = list(recipe.data.tasks)
    return values


def _values(section: AdapterSection) -> dict[str, Any]:
    """By dotted key; a list of layers has no order."""
    values = section.model_dump(mode="json", exclude={*FREE})
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    return {f"adapter.{key}": value for key, value in values.items()}


def _changed_values(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key was …, is …`` for each key of ``then`` that is something else ``now``; of another method of PEFT its type
    alone, as the fields of one mean nothing to another."""
    changed = [key for key, was in then.items() if now.get(key) != was]
    if KIND in changed:
        changed = [KIND]
    return [f"{key} was {render_inline(then[key])}, is {render_inline(now.get(key))}" for key in changed]


def other_base(then: Mapping[str, Any], model: ModelSection) -> list[str]:
    """As `_changed_values`, for a base that is not the one that ``then``, of a manifest, names; empty if it is."""
    found = fingerprint(model.name, revision=model.revision)
    if found == then["fingerprint"]:
        return []
    was = {"model.name": then["name"]}
    if "revision" in then:  # which an export does not have
        was["model.revision"] = then["revision"]
    now = {"model.name": model.name, "model.revision": model.revision}
    hashes = f"fingerprint was {then['fingerprint']}, is {found}"
    return [f"another base ({hashes})", *_changed_values(was, now)]


def _refuse_differences(folder: Path, found: Sequence[str]) -> None:
    """Refuses to continue the adapter in ``folder`` if there are differences: all in one line."""
    if found:
        raise UsageError(f"adapter.continue_from = {folder}: {'; '.join(found)}; to continue it, restore these values")
