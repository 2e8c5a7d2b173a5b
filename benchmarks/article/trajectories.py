"""Trains B · M · A and its comparisons step by step in float64, on a network small enough to repeat often.

Two adapted layers with tanh between them learn a teacher whose weights differ from the base by a low-rank matrix. The
layers, the mixers and their folding are the package's own, so the results hold for this code.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.article.update_rules import Rule
from moslora.adapters import AdapterLinear, Mixer, build_mixer

WIDTHS = (20, 16, 12)
RANK = 4
SCALE = 2.0
STEPS = 60
ROUNDING = 1e-10
"""Trajectories closer than this (relative, float64) are called the same."""


@dataclass(frozen=True, eq=False)
class Start:
    """A and the mixer of both layers; B starts at zero."""

    a: tuple[Tensor, ...]
    mixers: tuple[Mixer, ...]


class Layer(NamedTuple):
    """The factors after a step; ``m`` is I where there is no mixer."""

    a: Tensor
    m: Tensor
    b: Tensor


class Trajectory(NamedTuple):
    """Entry t is the state after t + 1 steps."""

    deltas: Tensor  # (steps, numbers): the ΔW of both layers, flattened and joined
    layers: list[tuple[Layer, ...]]


@dataclass(frozen=True)
class Problem:
    """Frozen weights, rows to fit, and which rows each step sees."""

    weights: tuple[Tensor, ...]
    x: Tensor  # (rows, WIDTHS[0])
    y: Tensor  # (rows, WIDTHS[-1])
    batches: Tensor  # (STEPS, rows of a batch), indices


def _random(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@cache
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    shapes = list(zip(WIDTHS[1:], WIDTHS[:-1], strict=True))
    weights = tuple(_random(*shape, generator=generator) / shape[1] ** 0.5 for shape in shapes)
    teacher = []
    for weight in weights:
        left = _random(weight.shape[0], 3, generator=generator)
        right = _random(3, weight.shape[1], generator=generator)
        teacher.append(weight + left @ right / 6)
    x = _random(96, WIDTHS[0], generator=generator)
    y = torch.tanh(x @ teacher[0].T) @ teacher[1].T
    batches = torch.randint(len(x), (STEPS, 24), generator=generator)
    return Problem(weights, x, y, batches)


def draw_a(rank: int = RANK, *, seed: int = 1) -> tuple[Tensor, ...]:
    """Gaussian, of the same variance as U(±1/√d_in), so that its distribution is the same after any rotation."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(rank, width, generator=generator) / (3 * width) ** 0.5 for width in WIDTHS[:-1])


def draw_orthogonal(rank: int = RANK, *, seed: int = 2) -> tuple[Tensor, ...]:
    """One orthogonal matrix a layer, uniformly distributed."""
    generator = torch.Generator().manual_seed(seed)
    empty = [torch.empty(rank, rank, dtype=torch.float64) for _ in WIDTHS[:-1]]
    return tuple(nn.init.orthogonal_(m, generator=generator) for m in empty)


def draw_signed_permutation(*, seed: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.eye(RANK, dtype=torch.float64).roll(1, 0)  # moves every row, whatever the draw
    draws = [torch.randint(2, (RANK, 1), generator=generator) * 2 - 1 for _ in WIDTHS[:-1]]
    return tuple(signs * shift for signs in draws)


def draw_kaiming(*, seed: int = 4) -> tuple[Tensor, ...]:
    """U(±1/√r), as a MoSLoRA mixer starts."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.rand(RANK, RANK, generator=generator, dtype=torch.float64) for _ in WIDTHS[:-1]]
    return tuple((2 * draw - 1) / RANK**0.5 for draw in draws)


def dense(a: tuple[Tensor, ...], ms: tuple[Tensor, ...], *, learned: bool) -> Start:
    """The package's dense mixer with the given values, learned or fixed."""
    mixers = []
    for m in ms:
        mixer = build_mixer(kind="dense", rank=m.shape[1], rank_out=m.shape[0]).double()
        weight = mixer.get_parameter("weight")
        weight.data.copy_(m)
        weight.requires_grad_(learned)
        mixers.append(mixer)
    return Start(a, tuple(mixers))


def lora(a: tuple[Tensor, ...]) -> Start:
    return Start(a, tuple(build_mixer(kind="identity", rank=len(factor)) for factor in a))


@torch.no_grad()
def folded(start: Start, *, gain: float = 1.0) -> Start:
    """LoRA from Â = gain · M · A, or from the smaller equal pair where the mixer has one (a butterfly's A₁ + A₂)."""
    factors = []
    for a, mixer in zip(start.a, start.mixers, strict=True):
        b = torch.zeros(1, mixer.rank_out, dtype=a.dtype)
        folded_a, _ = mixer.fold(a, b)
        factors.append(gain * folded_a)
    return lora(tuple(factors))


def train(start: Start, rule: Rule, *, repeat: int = 1) -> Trajectory:
    """``STEPS`` mini-batches; each used ``repeat`` times at 1/``repeat`` of the rate, which refines the path."""
    data = problem()
    layers = layers_of(start)
    first, second = layers
    a = [layer.lora_a for layer in layers]
    b = [layer.lora_b for layer in layers]
    m = []
    for layer in layers:
        m += [weight for weight in layer.mixer.parameters() if weight.requires_grad]
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
    """Of the network with the weight changes ``delta`` (an entry of ``Trajectory.deltas``), on all rows."""
    data = problem()
    parts = delta.split([weight.numel() for weight in data.weights])
    first, second = (weight + part.view_as(weight) for weight, part in zip(data.weights, parts, strict=True))
    hidden = torch.tanh(data.x @ first.T)
    return (hidden @ second.T - data.y).square().mean().item()


def distance(one: Trajectory, other: Trajectory) -> Tensor:
    """‖ΔW − ΔW′‖ / ‖ΔW′‖ after each step, Frobenius over both layers; shape ``(steps,)``."""
    return (one.deltas - other.deltas).norm(dim=1) / other.deltas.norm(dim=1)
