"""The weights of an adapter that a new training continues."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from moslora.base.adapted import adapters_of, section_settings
from moslora.base.identity import fingerprint
from moslora.base.peft_methods import KIND, config_of, is_drawn_from_the_base, read_config, settings_of
from moslora.console import note_once
from moslora.errors import UsageError
from moslora.recipe import AdapterSection, PeftSection, Recipe
from moslora.recipe.builtin import printable
from moslora.recipe.recipe import changed_keys
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.origin import Origin, locate_predecessor, origin_of_peft
from moslora.runs.peft_adapter import load_weights, own_section, own_state, read_layers, read_settings
from moslora.runs.peft_files import adapter_files, has_adapter_files


@dataclass(frozen=True)
class Continued:
    """Adapter that a run continues, checked against the run's recipe.

    Attributes:
        path: its folder.
        predecessor: the record of it in the run's manifests.
        state: its weights by the run's parameter names.
    """

    path: Path
    predecessor: Origin
    state: Mapping[str, Tensor]

    def weights(self) -> Mapping[str, Tensor]:
        """Weights of the continued adapter by parameter name, as `AdapterFolder.weights` returns them."""
        return self.state


def read_continued(recipe: Recipe, *, begun_with: Origin | None = None, fetching: bool = True) -> Continued | None:
    """Read the adapter that ``recipe`` continues; ``None`` if it starts at the base.

    Args:
        recipe: recipe of the run that continues the adapter.
        begun_with: adapter that the run started with before it was stopped; the same weights are required now.
        fetching: whether to compare the base, which may have to be downloaded.

    Raises:
        UsageError: the adapter is missing, or does not fit; one line has all differences.
        MosloraError: a file is damaged.
    """
    place = recipe.adapter.continue_from
    if place is None:
        return None
    folder = locate_predecessor(place)
    if has_adapter_files(folder):
        continued, changed = _of_peft(folder, recipe)
    else:
        continued, changed = _own(folder, recipe)
    origin = continued.predecessor
    model = recipe.model
    if fetching and origin.fingerprint and not changed:  # PEFT's own adapters have no fingerprint
        now = fingerprint(model.name, revision=model.revision)
        if now != origin.fingerprint:
            changed = [f"another base: was {origin.base} ({origin.fingerprint}), is {model.name} ({now})"]
    if changed:
        fix = "to continue it, restore these values"
        raise UsageError(f"adapter.continue_from = {folder}: {'; '.join(changed)}; {fix}")
    if begun_with is not None and begun_with.adapter != origin.adapter:
        raise UsageError(
            f"adapter.continue_from = {folder}: has other weights than the run began with; restore them, or start a new"
            " run with name=… or --out"
        )
    return continued


def _own(folder: Path, recipe: Recipe) -> tuple[Continued, list[str]]:
    """Read an adapter folder of moslora; return it, and the list of its differences from ``recipe``."""
    adapter = open_adapter(folder)
    now = {**adapters_of(recipe).settings(recipe), "seed": recipe.seed, "data.tasks": list(recipe.data.tasks)}
    then = adapters_of(adapter.recipe).settings(adapter.recipe)
    origin = adapter.origin_for(adapter.recipe.model.name)
    origin = replace(origin, run=adapter.run_name, steps=None)
    return Continued(folder, origin, adapter.weights()), _changed_values(then, now)


def _of_peft(folder: Path, recipe: Recipe) -> tuple[Continued, list[str]]:
    """Read an adapter in PEFT's format; return it, and the list of its differences from ``recipe``."""
    config, weights = adapter_files(folder)
    if isinstance(recipe.adapter, PeftSection):
        then = settings_of(read_config(config))
        if is_drawn_from_the_base(then):
            raise UsageError(
                f"adapter.continue_from = {folder}: its initialisation changed the base at random, and its files do not"
                " record how; have PEFT convert it to a plain LoRA (path_initial_model_for_weight_conversion)"
            )
        changed = _changed_values(then, settings_of(config_of(recipe.adapter)))
        state: Mapping[str, Tensor] = load_weights(weights)
    else:
        try:
            settings = read_settings(config)
        except UsageError as error:
            fix = "if it is PEFT's own, set adapter.peft with its peft_type (docs/peft.md)"
            raise UsageError(f"{error}; cannot be continued as a LoRA, with or without a mixer; {fix}") from None
        layers = read_layers(weights, settings)
        section = AdapterSection.model_validate(own_section(settings, layers))
        changed = _changed_values(section_settings(section), section_settings(recipe.adapter))
        state = own_state(layers)
    origin = origin_of_peft(folder)
    named = json.loads(config.read_bytes()).get("base_model_name_or_path")
    if not origin.fingerprint and named and named != recipe.model.name:
        note_once(
            f"{folder}: names {printable(str(named))} as its base, but continues over {recipe.model.name}; both must"
            " have the same weights"
        )
    return Continued(folder, origin, state), changed


def _changed_values(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key was …, is …`` for each key of ``then`` with another value ``now``.

    If PEFT's method differs, that alone is returned, since two methods share no fields.
    """
    changed = changed_keys(then, {key: now.get(key) for key in then})
    return [changed[KIND]] if KIND in changed else list(changed.values())
