"""The weights with which a training starts that continues another adapter."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from moslora.base.identity import fingerprint
from moslora.base.peft_methods import KIND, TARGETS, is_drawn_from_the_base, own_fields, settings_in, settings_of
from moslora.base.resolve import available_offline
from moslora.console import note_once
from moslora.errors import UsageError
from moslora.recipe import Adapter, AdapterSection, ModelSection, PeftSection, Recipe
from moslora.recipe.builtin import printable
from moslora.recipe.yaml_text import render_inline
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.lineage import Predecessor
from moslora.runs.origin import read_origin
from moslora.runs.peft_adapter import load_weights, own_section, own_state, read_layers, read_settings
from moslora.runs.peft_files import adapter_files, has_adapter_files
from moslora.runs.predecessor import locate_predecessor, own_predecessor, peft_predecessor

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
    predecessor: Predecessor
    state: Mapping[str, Tensor]

    def weights(self) -> Mapping[str, Tensor]:
        """As those of `moslora.runs.adapter_folder.AdapterFolder`."""
        return self.state


def read_continued(recipe: Recipe, *, begun_with: Predecessor | None = None, fetching: bool = True) -> Continued | None:
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
    if begun_with is not None and begun_with.sha256 != continued.predecessor.sha256:
        hashes = f"sha256 was {begun_with.sha256[:12]}…, is {continued.predecessor.sha256[:12]}…"
        raise UsageError(
            f"adapter.continue_from = {folder}: has other weights than the run began with ({hashes}); restore them, or"
            " start a new run with name=… or --out"
        )
    return continued


def _own(folder: Path, recipe: Recipe, *, fetching: bool) -> Continued:
    """An adapter of ours, or a method of PEFT that was trained here."""
    adapter = open_adapter(folder)
    then = adapter.recipe
    found = _differences(then, recipe)
    if (fetching and not found) or _is_here(recipe.model):
        found |= other_base(adapter.manifest["base"], recipe.model)
    _refuse_differences(folder, found)
    if then.model.precision != recipe.model.precision:
        note_once(
            f"{folder}: trained over its base in {then.model.precision} and continued in {recipe.model.precision}, so"
            " it starts slightly off where it was"
        )
    predecessor = own_predecessor(adapter)
    return Continued(folder, predecessor, adapter.weights())


def _of_peft(folder: Path, recipe: Recipe, *, fetching: bool) -> Continued:
    """An adapter in PEFT's format, as a method of PEFT or as one of ours."""
    if isinstance(recipe.adapter, PeftSection):
        state = _state_of_method(folder, recipe.adapter)
    else:
        state = _state_of_lora(folder, recipe.adapter)
    origin = read_origin(folder)  # an export has the fingerprint of its base; of others only the name is known
    config, _ = adapter_files(folder)
    model = recipe.model
    named = json.loads(config.read_bytes()).get("base_model_name_or_path")
    if origin is None and named and named != model.name:
        note_once(
            f"{folder}: names {printable(str(named))} as its base, but continues over {model.name}; both must have the"
            " same weights"
        )
    elif origin is not None and (fetching or _is_here(model)):
        then = {"name": printable(origin.base), "fingerprint": origin.fingerprint}
        found = other_base(then, model)
        _refuse_differences(folder, dict.fromkeys(found, ""))  # no override: its name may be no path of this machine
    return Continued(folder, peft_predecessor(folder), state)


def _is_here(model: ModelSection) -> bool:
    """Whether the base can be looked at without a download."""
    folder = available_offline(model.name, revision=model.revision)
    return folder is not None and any(folder.glob("*.safetensors"))


def _state_of_method(folder: Path, section: PeftSection) -> Mapping[str, Tensor]:
    """The weights of a method of PEFT, in PEFT's format."""
    config, weights = adapter_files(folder)
    then = settings_in(config)
    now = settings_of(section)
    if then[KIND] != now[KIND]:  # one value each, as the fields of one mean nothing to another
        then = {"adapter.peft": own_fields(then), TARGETS: then[TARGETS]}
        now = {"adapter.peft": own_fields(now), TARGETS: now[TARGETS]}
    _refuse_differences(folder, _changed_values(then, now))
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
    _refuse_differences(folder, _changed_values(_comparable(then), _comparable(section)))
    return own_state(layers)


def _differences(then: Recipe, now: Recipe) -> dict[str, str]:
    """`_changed_values` of two adapters, of the tasks that a gate knows, and of one method of PEFT: in its fields, with
    PEFT's defaults, and in the seed by which it split the base."""
    one = then.adapter
    other = now.adapter
    if isinstance(one, PeftSection) and isinstance(other, PeftSection) and one.peft.peft_type == other.peft.peft_type:
        before = settings_of(one)
        after = settings_of(other)
        if is_drawn_from_the_base(before):
            before["seed"] = then.seed
            after["seed"] = now.seed
        return _changed_values(before, after)
    before = _comparable(one)
    after = _comparable(other)
    if one.gated_by_task and other.gated_by_task:
        before["data.tasks"] = list(then.data.tasks)
        after["data.tasks"] = list(now.data.tasks)
    return _changed_values(before, after)


def _comparable(section: Adapter) -> dict[str, Any]:
    """What must fit, by dotted key; a list of layers has no order."""
    values = section.model_dump(mode="json", exclude={*FREE})
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    return {f"adapter.{key}": value for key, value in values.items()}


def _changed_values(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """``key was …, is …`` -> the override that restores it, for each key of ``then`` that is something else ``now``."""
    found = {}
    for key, was in then.items():
        value = now.get(key)
        if value != was:
            said = f"{key} was {render_inline(was)}, is {render_inline(value)}"
            found[said] = shlex.quote(f"{key}={render_inline(was)}")
    return found


def other_base(then: Mapping[str, Any], model: ModelSection) -> dict[str, str]:
    """As `_changed_values`, for a base that is not the one that ``then``, of a manifest, names; empty if it is. No
    override restores one whose files were changed."""
    found = fingerprint(model.name, revision=model.revision)
    if found == then["fingerprint"]:
        return {}
    was = {"model.name": then["name"]}
    if "revision" in then:  # which an export does not have
        was["model.revision"] = then["revision"]
    now = {"model.name": model.name, "model.revision": model.revision}
    hashes = f"fingerprint was {then['fingerprint']}, is {found}"
    return {f"another base ({hashes})": "", **_changed_values(was, now)}


def _refuse_differences(folder: Path, found: Mapping[str, str]) -> None:
    """Refuses to continue the adapter in ``folder`` if there are differences: all in one line, with the fix."""
    if found:
        said = "; ".join(found)
        overrides = [override for override in found.values() if override]
        if overrides:
            said += f"; to continue it: {' '.join(overrides)}"
        raise UsageError(f"adapter.continue_from = {folder}: {said}")
