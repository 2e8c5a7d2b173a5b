"""Mixer matrix M of each layer of an adapter, and its start.

Their heat maps are in `moslora.report.figures.mixers`.
"""

import re
from dataclasses import dataclass

import numpy as np

from moslora.adapters import Mixer, build_mixer, named_adapters
from moslora.adapters.start import generator_of
from moslora.compare.distribution import Floats
from moslora.recipe import AdapterSection, Recipe
from moslora.runs.adapted_model import load_without_base
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.origin import CONTINUED_FROM


@dataclass(frozen=True)
class LearnedLayer:
    """Mixer of a layer.

    Attributes:
        name: name of the layer in the model.
        mixer: M, shape ``(rank_out, rank_in)``.
        start: M as the seed drew it, of the same shape; ``None`` if the run continued an adapter or was imported.
    """

    name: str
    mixer: Floats
    start: Floats | None

    @property
    def kind(self) -> str:
        """Last part of the name, such as q_proj."""
        return self.name.rpartition(".")[2]

    @property
    def depth(self) -> int:
        """First number in the name, or 0."""
        numbers = re.findall(r"\.(\d+)\.", self.name)
        return int(numbers[0]) if numbers else 0


def learned_layers(folder: AdapterFolder) -> list[LearnedLayer]:
    """Return the layers of an adapter whose M has weights, in the model's order. The base's weights are not read.

    Empty for a method of PEFT, and for a mixer that depends on the token or the task: it has no single M.
    """
    mixer = folder.recipe.adapter.mixer
    if mixer is None or mixer.routes:
        return []
    trained_before = CONTINUED_FROM in folder.manifest or "imported" in folder.manifest
    layers = []
    for name, layer in named_adapters(load_without_base(folder)):
        if not list(layer.mixer.parameters()):
            continue
        start = None if trained_before else _drawn(folder.recipe, name)
        layers.append(LearnedLayer(name, _matrix(layer.mixer), start))
    return layers


def _matrix(mixer: Mixer) -> Floats:
    """Return M, shape ``(rank_out, rank_in)``."""
    return np.asarray(mixer.matrix().detach().double().numpy(), dtype=np.float64)


def _drawn(recipe: Recipe, name: str) -> Floats:
    """Return M of the layer ``name`` as the recipe's seed draws it, shape ``(rank_out, rank_in)``."""
    options = recipe.adapter
    assert isinstance(options, AdapterSection)
    drawn = build_mixer(options.mixer, rank=options.rank, rank_out=options.rank_out)
    drawn.reset_parameters(generator_of(recipe.seed, name, "mixer"))
    return _matrix(drawn)
