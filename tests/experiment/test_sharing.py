"""The arms of an experiment share, for one seed, the draws of A and B, the rows of each step and dropout's masks."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator

from moslora.adapters import named_adapters
from moslora.kernels.dropout import Dropout
from moslora.training.loop import train
from moslora.training.prepare import prepare

ARMS = {
    "lora": ["adapter.mixer={kind: identity}"],
    "folded": ["adapter.mixer.train=folded"],
    "frozen": ["adapter.mixer.train=frozen"],
    "kaiming": [],
    "orthogonal": ["adapter.mixer.init=orthogonal"],
    "two-subspace": ["adapter.mixer={kind: butterfly}"],
    "kronecker": ["adapter.mixer={kind: kronecker, blocks: 2}"],
    "dora": ["adapter.mixer={kind: identity}", "adapter.dora=true"],
    "pissa": ["adapter.mixer={kind: identity}", "adapter.start=pissa"],
    "plus": ["adapter.mixer={kind: identity}", "training.lora_plus_ratio=16"],
}
OTHER_START = ("folded", "pissa")


class Watched:
    """Runs four steps of a recipe and keeps the start, the rows of each step, and the places dropped in each layer."""

    def __init__(self, recipe):
        parts, _ = prepare(Accelerator(), recipe)
        self.layers = {name: layer for name, layer in named_adapters(parts.model)}
        self.start = {name: (layer.lora_a.clone(), layer.lora_b.clone()) for name, layer in self.layers.items()}
        self.mixers = {name: layer.mixer.matrix().clone() for name, layer in self.layers.items()}
        self.rows = []
        self.dropped = []
        for module in parts.model.modules():
            if isinstance(module, Dropout):
                module.draw = partial(self._keep, module.draw)
        for step in range(4):
            self.rows.append([parts.rows[row].id for row in parts.plan[step]])
        train(
            parts,
            first_step=0,
            report=lambda step, **values: None,
            checkpoint=lambda step: None,
            validate=lambda step: False,
            stop_requested=lambda: False,
        )

    def _keep(self, draw, x):
        self.dropped.append(draw(x))
        return self.dropped[-1]


@pytest.fixture(scope="module")
def plain(module_recipe):
    return Watched(module_recipe(*ARMS["lora"]))


@pytest.fixture(scope="module")
def module_recipe(world):
    from moslora.recipe import load_recipe

    return lambda *overrides: load_recipe(world / "recipe.yaml", ["training.max_steps=4", *overrides])


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "lora"])
def test_arms_share_their_draws_rows_and_masks(arm, plain, module_recipe):
    other = Watched(module_recipe(*ARMS[arm]))
    assert other.rows == plain.rows
    assert len(other.dropped) == len(plain.dropped) > 4 * len(plain.layers) - 1
    assert all(mine.equal(theirs) for mine, theirs in zip(other.dropped, plain.dropped, strict=True))
    assert all(len(places) for places in plain.dropped)
    for name, (a, b) in plain.start.items():
        if arm not in OTHER_START:
            assert other.start[name][0].equal(a) and other.start[name][1].equal(b)
    assert not all(other.layers[name].lora_a.equal(layer.lora_a) for name, layer in plain.layers.items())


def test_the_folded_start_is_the_mixer_of_the_learned_arm_times_the_shared_a(plain, module_recipe):
    learned, frozen, folded = (Watched(module_recipe(*ARMS[arm])) for arm in ("kaiming", "frozen", "folded"))
    for name, (a, _) in plain.start.items():
        assert learned.mixers[name].equal(frozen.mixers[name])
        torch.testing.assert_close(folded.start[name][0], learned.mixers[name] @ a, rtol=1e-6, atol=1e-7)


def test_other_seeds_share_no_draws(plain, module_recipe):
    other = Watched(module_recipe(*ARMS["lora"], "seed=4"))
    assert other.rows != plain.rows
    assert not any(other.start[name][0].equal(a) for name, (a, _) in plain.start.items())
