"""Facts of the mixers that are known without torch, from which rules follow, against what the mixers draw."""

import inspect
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from pydantic import BaseModel

from moslora.adapter_options import AdapterOptions
from moslora.adapters import inject
from moslora.adapters.mixers import MIXERS
from moslora.mixer_options import AT_ZERO, INVERTIBLE, WELL_CONDITIONED, MixerOptions
from reference import mixer_of

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
"""Every mixer with each of its starts, as a recipe writes it."""


@pytest.mark.parametrize("kind", MIXERS)
def test_mixers_take_exactly_the_options_of_recipes(kind):
    assert MIXERS[kind].options_type is SECTIONS[kind]
    assert {*inspect.signature(MIXERS[kind]).parameters} - {"options"} <= FROM_ELSEWHERE


def test_inject_has_the_recipes_defaults_except_dropout():
    """0.05 in a recipe, the paper's, and none for a caller who names none."""
    parameters = inspect.signature(inject).parameters
    other = {}
    for name, value in AdapterOptions():
        default = parameters[name].default
        if default not in (inspect.Parameter.empty, value):
            other[name] = (value, default)
    assert other == {"dropout": (0.05, 0.0)}


@pytest.mark.parametrize("options", STARTS, ids=str)
def test_the_mixers_that_start_at_zero_are_those_the_rules_name(options):
    mixer = mixer_of(rank=16, in_features=8, **options)
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    named = options.get("init") in AT_ZERO or options["kind"] == "diagonal"
    assert mixer.options.starts_at_zero == named
    if not mixer.options.routes:  # a softmax is never zero; LoRA-XS draws N(0, 1e-5²)
        assert bool(mixer.matrix().abs().max() <= 1e-4) == named


@pytest.mark.parametrize("rank", [4, 16, 64])
@pytest.mark.parametrize("options", STARTS, ids=str)
def test_pissa_needs_a_well_conditioned_mixer(options, rank):
    """Whatever the draw, what the rules let pass has an inverse no larger than itself; not so the rest."""
    mixer = mixer_of(rank=rank, in_features=8, **options)
    allowed = options["kind"] in INVERTIBLE and options.get("init") in (None, *WELL_CONDITIONED)
    if mixer.options.routes:
        assert not allowed
        return
    conditions = []
    for seed in range(20):
        mixer.reset_parameters(torch.Generator().manual_seed(seed))
        conditions.append(float(torch.linalg.cond(mixer.matrix().detach().double())))
    if allowed:
        assert max(conditions) < 1.001
    elif options["kind"] != "input-split":  # its A is not a whole one
        assert not all(value <= 10 for value in conditions)
