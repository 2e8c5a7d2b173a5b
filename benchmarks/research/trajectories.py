"""Training of B · M · A and its comparisons step by step in float64, on a small network.

Two adapted layers with tanh between them learn a teacher whose weights differ from the base by a low-rank matrix. The
layers, the mixers and their folding are the package's own, so the results hold for this code.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.research.update_rules import Rule
from moslora.adapters import AdapterLinear, Mixer, build_mixer
from moslora.mixer_options import DenseOptions, IdentityOptions

WIDTHS = (20, 16, 12)
RANK = 4
SCALE = 2.0
STEPS = 60
ROUNDING = 1e-10
"""Maximum relative distance of trajectories that count as equal, in float64."""


@dataclass(frozen=True, eq=False)
class Start:
    """Start of both layers: A and the mixer; B is zero."""

    a: tuple[Tensor, ...]
    mixers: tuple[Mixer, ...]


class Layer(NamedTuple):
    """Factors of a layer after a step; ``m`` is I without a mixer."""

    a: Tensor
    m: Tensor
    b: Tensor


class Trajectory(NamedTuple):
    """States of a training; entry t is the state after t + 1 steps."""

    deltas: Tensor  # (steps, numbers): the ΔW of both layers, flattened and joined
    layers: list[tuple[Layer, ...]]


@dataclass(frozen=True)
class Problem:
    """Frozen weights, rows to fit, and which rows each step sees."""

    weights: tuple[Tensor, ...]
    x: Tensor  # (rows, WIDTHS[0])
    y: Tensor  # (rows, WIDTHS[-1])
    batches: Tensor  # (STEPS, rows of a batch), indices


@cache
def problem() -> Problem:
    generator = seeded(0)
    random = partial(torch.randn, generator=generator, dtype=torch.float64)
    weights = tuple(random(d_out, d_in) / d_in**0.5 for d_in, d_out in pairwise(WIDTHS))
    first, second = (weight + random(len(weight), 3) @ random(3, weight.shape[1]) / 6 for weight in weights)
    x = random(96, WIDTHS[0])
    y = torch.tanh(x @ first.T) @ second.T
    batches = torch.randint(len(x), (STEPS, 24), generator=generator)
    return Problem(weights, x, y, batches)


def draw_a(rank: int = RANK, *, seed: int = 1) -> tuple[Tensor, ...]:
    """Gaussian A of both layers, ``(rank, width)``, with the variance of U(±1/√d_in); rotations keep its
    distribution."""
    random = partial(torch.randn, generator=seeded(seed), dtype=torch.float64)
    return tuple(random(rank, width) / (3 * width) ** 0.5 for width in WIDTHS[:-1])


def draw_orthogonal(rank: int = RANK, *, seed: int = 2) -> tuple[Tensor, ...]:
    """Uniformly distributed orthogonal matrix ``(rank, rank)`` for each layer."""
    generator = seeded(seed)
    empty = [torch.empty(rank, rank, dtype=torch.float64) for _ in WIDTHS[:-1]]
    return tuple(nn.init.orthogonal_(m, generator=generator) for m in empty)


def draw_signed_permutation() -> tuple[Tensor, ...]:
    generator = seeded(3)
    shift = torch.eye(RANK, dtype=torch.float64).roll(1, 0)  # moves every row, whatever the draw
    return tuple((torch.randint(2, (RANK, 1), generator=generator) * 2 - 1) * shift for _ in WIDTHS[:-1])


def draw_kaiming() -> tuple[Tensor, ...]:
    """Matrix ``(r, r)`` for each layer from U(±1/√r), the start of a MoSLoRA mixer."""
    draws = torch.rand(len(WIDTHS) - 1, RANK, RANK, generator=seeded(4), dtype=torch.float64)
    return tuple((2 * draws - 1) / RANK**0.5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(a: tuple[Tensor, ...], ms: tuple[Tensor, ...], *, learned: bool) -> Start:
    """The package's dense mixer with the given values, learned or fixed."""
    mixers = []
    for m in ms:
        mixer = build_mixer(DenseOptions(), rank=m.shape[1], rank_out=m.shape[0]).double()
        weight = mixer.get_parameter("weight")
        weight.data.copy_(m)
        weight.requires_grad_(learned)
        mixers.append(mixer)
    return Start(a, tuple(mixers))


def lora(a: tuple[Tensor, ...]) -> Start:
    return Start(a, tuple(build_mixer(IdentityOptions(), rank=len(factor)) for factor in a))


@torch.no_grad()
def folded(start: Start, *, gain: float = 1.0) -> Start:
    """LoRA from Â = gain · M · A, or from the smaller equal pair where the mixer has one (a butterfly's A₁ + A₂)."""
    factors = []
    for a, mixer in zip(start.a, start.mixers, strict=True):
        folded_a, _ = mixer.fold(a, torch.zeros(1, mixer.rank_out, dtype=a.dtype))
        factors.append(gain * folded_a)
    return lora(tuple(factors))


def train(start: Start, rule: Rule, *, repeat: int = 1) -> Trajectory:
    """``STEPS`` mini-batches; each used ``repeat`` times at 1/``repeat`` of the rate, which refines the path."""
    data = problem()
    layers = layers_of(start)
    first, second = layers
    a = [layer.lora_a for layer in layers]
    b = [layer.lora_b for layer in layers]
    m = [weight for layer in layers for weight in layer.mixer.parameters() if weight.requires_grad]
    optimizer = replace(rule, lr=rule.lr / repeat).build(a=a, b=b, m=m)
    deltas = []
    states = []
    for rows in data.batches.repeat_interleave(repeat, 0):
        optimizer.zero_grad()
        hidden = torch.tanh(first(data.x[rows]))
        (second(hidden) - data.y[rows]).square().mean().backward()
        rule.clip([*a, *b, *m])
        optimizer.step()
        with torch.no_grad():
            deltas.append(torch.cat([layer.delta_weight().flatten() for layer in layers]))
            states.append(tuple(_copy(layer) for layer in layers))
    return Trajectory(torch.stack(deltas), states)


def layers_of(start: Start) -> list[AdapterLinear]:
    """The network's two layers with these adapters, before the first step."""
    layers = []
    for weight, a, mixer in zip(problem().weights, start.a, start.mixers, strict=True):
        base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        layer = AdapterLinear(base, mixer=copy.deepcopy(mixer), scale=SCALE).double()
        with torch.no_grad():
            base.weight.copy_(weight)
            layer.lora_a.copy_(a)
            layer.lora_b.zero_()
        layers.append(layer)
    return layers


def _copy(layer: AdapterLinear) -> Layer:
    m = layer.mixer.matrix().to(layer.lora_a)
    return Layer(layer.lora_a.detach().clone(), m.detach().clone(), layer.lora_b.detach().clone())


def loss(delta: Tensor) -> float:
    """Loss of the network on all rows with the weight changes ``delta``, an entry of ``Trajectory.deltas``."""
    data = problem()
    parts = delta.split([weight.numel() for weight in data.weights])
    first, second = (weight + part.view_as(weight) for weight, part in zip(data.weights, parts, strict=True))
    hidden = torch.tanh(data.x @ first.T)
    return (hidden @ second.T - data.y).square().mean().item()


def distance(one: Trajectory, other: Trajectory) -> Tensor:
    """‖ΔW − ΔW′‖ / ‖ΔW′‖ after each step, Frobenius over both layers; shape ``(steps,)``."""
    return (one.deltas - other.deltas).norm(dim=1) / other.deltas.norm(dim=1)
