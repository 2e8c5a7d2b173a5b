"""The weights with which a training starts that continues another adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from moslora.base.peft_methods import KIND, TARGETS, is_drawn_from_the_base, own_fields, settings_in, settings_of
from moslora.console import note_once
from moslora.errors import UsageError
from moslora.recipe import AdapterSection, ModelSection, PeftSection, Recipe
from moslora.recipe.builtin import printable
from moslora.runs.adapter_folder import load_tensors
from moslora.runs.continuing import (
    changed_values,
    differences,
    has_weights_here,
    is_one_method_of_peft,
    other_base,
    refuse_differences,
    section_differences,
)
from moslora.runs.lineage import Predecessor
from moslora.runs.manifest import WEIGHTS, read_checked
from moslora.runs.origin import read_origin
from moslora.runs.peft_adapter import load_weights, own_section, own_state, read_layers, read_settings
from moslora.runs.peft_files import adapter_files, has_adapter_files, value_in
from moslora.runs.predecessor import locate_predecessor, own_predecessor, peft_predecessor


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
    folder = _locate(place, begun_with=begun_with)
    comparing_base = fetching or has_weights_here(recipe.model)
    if has_adapter_files(folder):
        continued = _of_peft(folder, recipe, comparing_base=comparing_base)
    else:
        continued = _own(folder, recipe, comparing_base=comparing_base)
    if begun_with is not None and begun_with.sha256 != continued.predecessor.sha256:
        hashes = f"sha256 was {begun_with.sha256[:12]}…, is {continued.predecessor.sha256[:12]}…"
        raise UsageError(
            f"adapter.continue_from = {folder}: has other weights than the run began with ({hashes}); restore them, or"
            " start a new run with name=… or --out"
        )
    return continued


def _locate(place: str, *, begun_with: Predecessor | None) -> Path:
    """The folder that ``place`` means; of a run that has begun no other can be named."""
    try:
        return locate_predecessor(place)
    except UsageError as error:
        if begun_with is None:
            raise
        raise UsageError(f"{error}; the run began with {begun_with}: move or link it back there") from None


def fitting_predecessor(recipe: Recipe) -> Predecessor | None:
    """The adapter that ``recipe`` continues, which fits as far as can be seen without a download; ``None`` if it starts
    at the base. Errors as :func:`read_continued`."""
    continued = read_continued(recipe, fetching=False)
    if continued is None:
        return None
    return continued.predecessor


def _of_peft(folder: Path, recipe: Recipe, *, comparing_base: bool) -> Continued:
    """An adapter in PEFT's format, as a method of PEFT or as one of ours."""
    if isinstance(recipe.adapter, PeftSection):
        state = _state_of_method(folder, recipe.adapter)
    else:
        state = _state_of_lora(folder, recipe.adapter)
    if comparing_base:
        _check_base_of_peft(folder, recipe.model)
    return Continued(folder, peft_predecessor(folder), state)


def _own(folder: Path, recipe: Recipe, *, comparing_base: bool) -> Continued:
    """An adapter of ours, or a method of PEFT that was trained here."""
    then, manifest = read_checked(folder)
    found = differences(then, recipe) | _method_differences(then, recipe)
    if comparing_base:
        found |= other_base(manifest["base"], recipe.model)
    refuse_differences(folder, found)
    if then.model.precision != recipe.model.precision:
        note_once(
            f"{folder}: trained over its base in {then.model.precision} and continued in {recipe.model.precision}, so"
            " it starts slightly off where it was"
        )
    predecessor = own_predecessor(folder, manifest, gated_by_task=then.adapter.gated_by_task)
    return Continued(folder, predecessor, load_tensors(folder / WEIGHTS))


def _method_differences(then: Recipe, now: Recipe) -> dict[str, str]:
    """Those of one method of PEFT: in its fields, with PEFT's defaults, and in the seed by which it split the base."""
    if not (isinstance(then.adapter, PeftSection) and isinstance(now.adapter, PeftSection)):
        return {}
    if not is_one_method_of_peft(then.adapter, now.adapter):
        return {}
    before = settings_of(then.adapter)
    found = changed_values(before, settings_of(now.adapter))
    if is_drawn_from_the_base(before):
        found |= changed_values({"seed": then.seed}, {"seed": now.seed})
    return found


def _state_of_method(folder: Path, section: PeftSection) -> Mapping[str, Tensor]:
    """The weights of a method of PEFT, in PEFT's format."""
    config, weights = adapter_files(folder)
    then = settings_in(config)
    now = settings_of(section)
    if then[KIND] != now[KIND]:
        then = _as_in_a_recipe(then, folder)
        now = _as_in_a_recipe(now, folder)
    refuse_differences(folder, changed_values(then, now))
    if is_drawn_from_the_base(then):
        raise UsageError(
            f"adapter.continue_from = {folder}: its start split the base at random, and its files do not say how; have"
            " PEFT convert it to a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    return load_weights(weights)


def _as_in_a_recipe(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The method as one value, as the fields of one mean nothing to another."""
    try:
        fields = own_fields(settings)
    except UsageError as error:
        raise UsageError(f"adapter.continue_from = {folder}: {error}") from None
    return {"adapter.peft": fields, TARGETS: settings[TARGETS]}


def _state_of_lora(folder: Path, section: AdapterSection) -> Mapping[str, Tensor]:
    """The weights of a LoRA in PEFT's format, as an adapter of ours."""
    config, weights = adapter_files(folder)
    kind = value_in(config, "peft_type")
    if kind not in (None, "LORA"):
        raise UsageError(
            f"adapter.continue_from = {folder}: an adapter of PEFT's {kind}, not of A, M and B; to continue it, set"
            f" adapter.peft with peft_type: {kind} (docs/peft.md)"
        )
    try:
        settings = read_settings(config)
    except UsageError as error:
        fix = "if it is PEFT's own, set adapter.peft with peft_type: LORA (docs/peft.md)"
        raise UsageError(f"{error}; cannot be continued as an adapter of A, M and B; {fix}") from None
    layers = read_layers(weights, targets=settings.target_modules)
    then = AdapterSection.model_validate(own_section(settings, layers))
    refuse_differences(folder, section_differences(then, section))
    return own_state(layers)


def _check_base_of_peft(folder: Path, model: ModelSection) -> None:
    """Refuses a base that is not that of an export, which has its fingerprint; of others only the name is known."""
    origin = read_origin(folder)
    if origin is not None:
        then = {"name": printable(origin.base), "fingerprint": origin.fingerprint}
        found = other_base(then, model)
        refuse_differences(folder, dict.fromkeys(found, ""))  # no override: its name may be no path of this machine
        return
    config, _ = adapter_files(folder)
    named = value_in(config, "base_model_name_or_path")
    if named and named != model.name:
        named = printable(str(named))
        note_once(
            f"{folder}: names {named} as its base, but continues over {model.name}; both must have the same weights"
        )
