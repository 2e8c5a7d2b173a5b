"""The recipe's floor may not import torch, so it repeats a few facts of the mixers; here they are held together."""

import inspect
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from pydantic import BaseModel

from moslora.adapters import build_mixer, inject
from moslora.adapters.mixers import MIXERS
from moslora.adapters.start import MAX_CONDITION
from moslora.mixer_options import AT_ZERO, INVERTIBLE, WELL_CONDITIONED, MixerOptions
from moslora.recipe.adapter import AdapterSection

SECTIONS: dict[str, type[BaseModel]] = {
    section.model_fields["kind"].default: section for section in get_args(MixerOptions)
}
FROM_ELSEWHERE = {"rank", "rank_out", "in_features", "tasks"}
"""Arguments of a mixer that no section gives: the adapter's, the layer's, and the tasks of the run."""


def starts() -> Iterator[dict[str, str]]:
    for kind, section in SECTIONS.items():
        if "init" not in section.model_fields:
            yield {"kind": kind}
            continue
        for init in get_args(section.model_fields["init"].annotation):
            yield {"kind": kind, "init": init}


STARTS = list(starts())
"""Every mixer with each of its starts, as arguments of `build_mixer`."""


@pytest.mark.parametrize("kind", MIXERS)
def test_a_mixer_takes_the_options_that_a_recipe_has_and_nothing_else_of_its_own(kind):
    assert MIXERS[kind].options_type is SECTIONS[kind]
    assert {*inspect.signature(MIXERS[kind]).parameters} - {"options"} <= FROM_ELSEWHERE


def test_the_adapter_has_the_options_and_the_defaults_of_inject_where_it_has_them():
    """Dropout is 0.05 in a recipe, the paper's, and none for a caller who names none. What a recipe names as the
    adapter to continue, `inject` takes as its weights."""
    own = AdapterSection().model_dump()
    assert own.pop("continue_from") is inspect.signature(inject).parameters["state"].default is None
    parameters = inspect.signature(inject).parameters
    assert own.keys() <= parameters.keys()
    other = {}
    for name, value in own.items():
        default = parameters[name].default
        if default not in (inspect.Parameter.empty, value):
            other[name] = (value, default)
    assert other == {"dropout": (0.05, 0.0)}


def test_gates_are_the_mixers_that_route():
    gates = {kind for kind, options in SECTIONS.items() if options.routes}
    assert gates == {kind for kind, mixer in MIXERS.items() if mixer.routes}
    assert all("experts" in SECTIONS[kind].model_fields for kind in gates)


@pytest.mark.parametrize("options", STARTS, ids=str)
def test_the_mixers_that_start_at_zero_are_those_the_rules_name(options):
    mixer = build_mixer(rank=16, in_features=8, **options)
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    named = options.get("init") in AT_ZERO or options["kind"] == "diagonal"
    assert mixer.zero_at_init == named
    if not mixer.routes:  # a softmax is never zero; LoRA-XS draws N(0, 1e-5²)
        assert bool(mixer.matrix().abs().max() <= 1e-4) == named


@pytest.mark.parametrize("rank", [4, 16, 64])
@pytest.mark.parametrize("options", STARTS, ids=str)
def test_a_mixer_may_start_from_the_bases_own_part_if_its_inverse_is_a_good_one(options, rank):
    """Whatever the draw, what the rules let pass has a condition number that the start takes; not so the rest."""
    mixer = build_mixer(rank=rank, in_features=8, **options)
    allowed = options["kind"] in INVERTIBLE and options.get("init") in (None, *WELL_CONDITIONED)
    if mixer.routes:
        assert not allowed
        return
    conditions = []
    for seed in range(20):
        mixer.reset_parameters(torch.Generator().manual_seed(seed))
        conditions.append(float(torch.linalg.cond(mixer.matrix().detach().double())))
    if allowed:
        assert max(conditions) < 1.001 < MAX_CONDITION
    elif options["kind"] != "input-split":  # its A is not a whole one
        assert not all(value <= MAX_CONDITION for value in conditions)
