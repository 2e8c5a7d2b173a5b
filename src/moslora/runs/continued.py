"""The weights with which a training starts that continues another adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from moslora.base.peft_methods import is_drawn_from_the_base, settings_in, settings_of
from moslora.console import note
from moslora.errors import UsageError
from moslora.recipe import AdapterSection, ModelSection, PeftSection, Recipe
from moslora.runs.adapter_folder import load_tensors
from moslora.runs.continuing import (
    changed_values,
    differences,
    other_base,
    refuse_differences,
    section_differences,
)
from moslora.runs.manifest import WEIGHTS, read_checked
from moslora.runs.origin import read_origin
from moslora.runs.peft_adapter import load_weights, own_section, own_state, read_layers, read_settings
from moslora.runs.peft_files import adapter_files, has_adapter_files, value_in
from moslora.runs.predecessor import Predecessor, locate_predecessor, own_predecessor, peft_predecessor


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


def read_continued(recipe: Recipe, *, begun_with: Predecessor | None = None) -> Continued | None:
    """The adapter that ``recipe`` continues; ``None`` if it starts at the base.

    ``begun_with``: what the run started with before it was stopped, or when it was made, which must be the same now.

    Raises:
        UsageError: it is not there, or does not fit: all differences in one line, and how to restore what was.
        MosloraError: a file is damaged.
    """
    place = recipe.adapter.continue_from
    if place is None:
        return None
    folder = locate_predecessor(place)
    if has_adapter_files(folder):
        continued = _of_peft(folder, recipe)
    else:
        continued = _own(folder, recipe)
    if begun_with is not None and begun_with.sha256 != continued.predecessor.sha256:
        hashes = f"sha256 was {begun_with.sha256[:12]}…, is {continued.predecessor.sha256[:12]}…"
        raise UsageError(
            f"adapter.continue_from = {folder}: has other weights than the run began with ({hashes}); restore them, or"
            " start a new run with name=… or --out"
        )
    return continued


def _of_peft(folder: Path, recipe: Recipe) -> Continued:
    """An adapter in PEFT's format, as a method of PEFT or as one of ours."""
    if isinstance(recipe.adapter, PeftSection):
        state = _state_of_method(folder, recipe.adapter)
    else:
        state = _state_of_lora(folder, recipe.adapter)
    _check_base_of_peft(folder, recipe.model)
    return Continued(folder, peft_predecessor(folder), state)


def _own(folder: Path, recipe: Recipe) -> Continued:
    """An adapter of ours, or a method of PEFT that was trained here."""
    then, manifest = read_checked(folder)
    found = differences(then, recipe)
    if isinstance(then.adapter, PeftSection) and isinstance(recipe.adapter, PeftSection):
        before = settings_of(then.adapter)
        found |= changed_values(before, settings_of(recipe.adapter))
        if is_drawn_from_the_base(before):
            found |= changed_values({"seed": then.seed}, {"seed": recipe.seed})
    found |= other_base(manifest["base"], recipe.model)
    refuse_differences(folder, found)
    if then.model.precision != recipe.model.precision:
        note(
            f"{folder}: trained over its base in {then.model.precision}, and goes on in {recipe.model.precision}: it"
            " starts a little off where it was"
        )
    predecessor = own_predecessor(folder, manifest, gated_by_task=then.adapter.gated_by_task)
    return Continued(folder, predecessor, load_tensors(folder / WEIGHTS))


def _state_of_method(folder: Path, section: PeftSection) -> Mapping[str, Tensor]:
    """The weights of a method of PEFT, in PEFT's format."""
    config, weights = adapter_files(folder)
    then = settings_in(config)
    refuse_differences(folder, changed_values(then, settings_of(section)))
    if is_drawn_from_the_base(then):
        raise UsageError(
            f"adapter.continue_from = {folder}: its start split the base at random, and its files do not say how; have"
            " PEFT convert it to a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    return load_weights(weights)


def _state_of_lora(folder: Path, section: AdapterSection) -> Mapping[str, Tensor]:
    """The weights of a LoRA in PEFT's format, as an adapter of ours."""
    config, weights = adapter_files(folder)
    kind = value_in(config, "peft_type")
    if kind not in (None, "LORA"):
        raise UsageError(
            f"adapter.continue_from = {folder}: an adapter of PEFT's {kind}, not of A, M and B; to continue it, set"
            f" adapter.peft with peft_type: {kind} (docs/peft.md)"
        )
    settings = read_settings(config)
    layers = read_layers(weights, targets=settings.target_modules)
    then = AdapterSection.model_validate(own_section(settings, layers))
    refuse_differences(folder, section_differences(then, section))
    return own_state(layers)


def _check_base_of_peft(folder: Path, model: ModelSection) -> None:
    """Refuses a base that is not that of an export, which has its fingerprint; of others only the name is known."""
    origin = read_origin(folder)
    if origin is not None:
        then = {"name": origin.base, "fingerprint": origin.fingerprint}  # a name that may be no path of this machine
        refuse_differences(folder, dict.fromkeys(other_base(then, model), ""))
        return
    config, _ = adapter_files(folder)
    named = value_in(config, "base_model_name_or_path")
    if named and named != model.name:
        note(f"{folder}: names {named} as its base, and goes on over {model.name}; they must be the same weights")
