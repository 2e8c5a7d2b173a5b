"""The weights of an adapter, layer by layer: M, how far it is from its start, and the spectrum of ΔW."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moslora.adapters import MIXERS, Mixer, build_mixer, fold, named_adapters
from moslora.adapters.start import generator_of
from moslora.compare.statistics import Floats
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import AdapterFolder, load_without_base
from moslora.runs.lineage import CONTINUED_FROM

NEAR_ZERO = 0.01
"""Largest ‖M₀‖ of an M that starts at zero or near it."""


@dataclass(frozen=True)
class LearnedLayer:
    """One layer's adapter."""

    name: str  # of the layer in the model
    mixer: Floats | None  # M, shape ``(rank_out, rank_in)``; ``None`` where M has no weights
    start: Floats | None  # M as the seed drew it, of the same shape; ``None`` also where it was trained before
    spectrum: Floats  # singular values of ΔW, falling; before a magnitude (DoRA)

    @property
    def kind(self) -> str:
        """The last part of the name, such as q_proj."""
        return self.name.rpartition(".")[2]

    @property
    def depth(self) -> int:
        """The first number in the name, or 0."""
        found = re.search(r"\.(\d+)\.", self.name)
        if found is None:
            return 0
        return int(found[1])

    @property
    def distance(self) -> float | None:
        """‖M − M₀‖ / ‖M₀‖ (Frobenius), or ‖M − M₀‖ for an M that starts near zero; ``None`` without weights,
        or if the start is not known."""
        if self.mixer is None or self.start is None:
            return None
        moved = float(np.linalg.norm(self.mixer - self.start))
        before = float(np.linalg.norm(self.start))
        if before > NEAR_ZERO:
            return moved / before
        return moved

    @cached_property
    def effective_rank(self) -> float:
        """exp(−Σ p log p), p = σ / Σ σ of ΔW (Roy and Vetterli 2007); 0 for ΔW = 0."""
        if not self.spectrum.any():
            return 0.0
        p = self.spectrum / self.spectrum.sum()
        return float(np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum()))


def learned_layers(folder: AdapterFolder) -> list[LearnedLayer]:
    """The layers of an adapter, in the model's order. The base's weights are not read.

    Empty for a method of PEFT, and for a mixer that depends on the token or the task: it has no single M and no ΔW.
    """
    mixer = folder.recipe.adapter.mixer
    if mixer is None or MIXERS[mixer.kind].routes:
        return []
    layers = []
    for name, layer in named_adapters(load_without_base(folder)):
        learned = None
        start = None
        if any(True for _ in layer.mixer.parameters()):
            learned = _matrix(layer.mixer)
            if CONTINUED_FROM not in folder.manifest and "imported" not in folder.manifest:
                start = _drawn(folder.recipe, name)
        pair = fold(layer)
        layers.append(LearnedLayer(name, learned, start, pair.scale * spectrum(pair.a, pair.b)))
    return layers


def _matrix(mixer: Mixer) -> Floats:
    """M."""
    return np.asarray(mixer.matrix().detach().double().numpy(), dtype=np.float64)


def _drawn(recipe: Recipe, name: str) -> Floats:
    """M of the layer ``name`` as the recipe's seed draws it."""
    options = recipe.adapter_options()
    drawn = build_mixer(rank=options["rank"], rank_out=options["rank_out"], **options["mixer"])
    drawn.reset_parameters(generator_of(recipe.seed, name, "mixer"))
    return _matrix(drawn)


def spectrum(a: Tensor, b: Tensor) -> Floats:
    """The singular values of b · a, falling, by two thin QR decompositions; ``a (r, in)``, ``b (out, r)``."""
    left, right = (torch.linalg.qr(factor.detach().double(), mode="r").R for factor in (b, a.T))
    return np.asarray(torch.linalg.svdvals(left @ right.T).numpy(), dtype=np.float64)
