"""What is compared: mixers with LoRA or with each other, butterflies with their twins."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.research.trajectories import (
    RANK,
    Layer,
    Start,
    Trajectory,
    dense,
    distance,
    draw_a,
    draw_kaiming,
    draw_orthogonal,
    draw_signed_permutation,
    folded,
    loss,
    train,
)
from benchmarks.research.update_rules import Rule
from moslora.adapters import build_mixer
from moslora.mixer_options import ButterflyOptions


@dataclass(frozen=True)
class Comparison:
    """A mixer and its twin, under one rule, except that the twin's A has ``rate_a`` times the learning rate."""

    label: str
    start: Start
    twin: Start
    rate_a: float = 1.0

    def distances(self, rule: Rule) -> Tensor:
        """After each step; shape ``(STEPS,)``."""
        return distance(path(self.start, rule), path(self.twin, replace(rule, rate_a=self.rate_a)))


# Several comparisons share a start, and LoRA from it; tables and figures share the comparisons.
path = cache(train)


@cache
def comparisons() -> dict[str, Comparison]:
    """Mixers against LoRA from Â = M · A, unless the label says otherwise."""
    a = draw_a()
    q = draw_orthogonal()
    rows = draw_orthogonal(seed=5)
    half = tuple(left[:, : RANK // 2] @ right[: RANK // 2] for left, right in zip(q, rows, strict=True))
    orthonormal = tuple(m[:RANK] for m in draw_orthogonal(RANK + 2))
    p = draw_signed_permutation()
    fixed = {"Q": q, "P": p, "half": half, "2Q": tuple(2 * m for m in q), "K": draw_kaiming()}
    start = {name: dense(a, ms, learned=False) for name, ms in fixed.items()}
    start["R"] = dense(draw_a(RANK + 2), orthonormal, learned=False)
    for name, ms in {"Q": q, "I": identities(), "K": fixed["K"]}.items():
        start[f"{name} learned"] = dense(a, ms, learned=True)
    twin = {name: folded(one) for name, one in start.items()}

    def against_lora(label: str, name: str, *, rate_a: float = 1.0) -> Comparison:
        return Comparison(label, start[name], twin[name], rate_a)

    return {
        "Q": against_lora("orthogonal Q, fixed", "Q"),
        "Q or none": Comparison("orthogonal Q, fixed; LoRA from A itself", start["Q"], twin["I learned"]),
        "P": against_lora("signed permutation P, fixed", "P"),
        "R": against_lora(f"orthonormal rows R ({RANK} × {RANK + 2}), fixed", "R"),
        "half": against_lora("singular values 1, 1, 0, 0, fixed", "half"),
        "2Q rated": against_lora("2Q, fixed; LoRA with 4 × the rate of A", "2Q", rate_a=4.0),
        "2Q": against_lora("2Q, fixed", "2Q"),
        "K": against_lora("Kaiming K, fixed", "K"),
        "Q learned": against_lora("orthogonal, learned", "Q learned"),
        "I learned": against_lora("identity, learned", "I learned"),
        "K learned": against_lora("Kaiming, learned", "K learned"),
        "Q or I learned": Comparison(
            "orthogonal against identity, both learned", start["Q learned"], start["I learned"]
        ),
    }


def identities() -> tuple[Tensor, ...]:
    return tuple(torch.eye(RANK, dtype=torch.float64) for _ in draw_a())


def butterfly(*, normalize: bool) -> Start:
    """Two-subspace mixing of rank 2 · RANK; normalised, M is halved."""
    a = draw_a(2 * RANK)
    options = ButterflyOptions(normalize=normalize)
    return Start(a, tuple(build_mixer(options, rank=len(factor)) for factor in a))


def half_rank(start: Start, *, normalize: bool) -> Start:
    """The butterfly's twin of rank RANK: from A₁ + A₂; normalised, from (A₁ + A₂) / √2."""
    return folded(start, gain=2**0.5 if normalize else 1.0)


def twin_rule(rule: Rule, *, normalize: bool) -> Rule:
    """The rule under which the twin takes the butterfly's steps.

    Either half of a factor sees ``scale`` times the twin's gradient, and the sum of both counts ``scale`` times in the
    twin's factor. The first does not matter to an update that ignores the gradient's size. Muon's polar factor of two
    equal halves is that of one half over √2.
    """
    scale = 2**-0.5 if normalize else 1.0
    rate = 2 * scale * {"sgd": scale, "muon": 2**-0.5}.get(rule.kind, 1.0)
    return replace(
        rule,
        lr=rule.lr * rate,
        decay=rule.decay / rate,
        eps=rule.eps / scale,
        clip_norm=rule.clip_norm / (2**0.5 * scale),
        clip_value=rule.clip_value / scale,
    )


@cache
def butterfly_distances(rule: Rule, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """The butterfly against LoRA of half its rank: under the twin's rule, and under its own; ``(STEPS,)`` each."""
    start = butterfly(normalize=normalize)
    twin = half_rank(start, normalize=normalize)
    mixed = train(start, rule)
    rules = (twin_rule(rule, normalize=normalize), rule)
    under_twin_rule, under_own = (distance(mixed, train(twin, one)) for one in rules)
    return under_twin_rule, under_own


def smallest_growth(trajectory: Trajectory, start: Start) -> Tensor:
    """eig_min(M Mᵀ − M₀ M₀ᵀ) after each step, the smaller of the layers'; shape ``(steps,)``."""
    growth = over_steps(trajectory, start, lambda layer, m: layer.m @ layer.m.T - m @ m.T)
    return torch.linalg.eigvalsh(growth).amin((1, 2))


def drift(trajectory: Trajectory, start: Start) -> Tensor:
    """‖(BᵀB − M Mᵀ) − (its start)‖ after each step, Frobenius over both layers; shape ``(steps,)``."""
    changes = over_steps(trajectory, start, lambda layer, m: layer.b.T @ layer.b - layer.m @ layer.m.T + m @ m.T)
    return changes.flatten(1).norm(dim=1)


def over_steps(trajectory: Trajectory, start: Start, of: Callable[[Layer, Tensor], Tensor]) -> Tensor:
    """What ``of`` makes of each layer and its M₀; shape ``(steps, layers, …)``."""
    first = [mixer.matrix().detach() for mixer in start.mixers]
    return torch.stack([torch.stack(list(map(of, layers, first))) for layers in trajectory.layers])


def start_matters(rule: Rule, *, draws: int, after: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """Loss of a learned mixer from an orthogonal start minus that from the identity, over draws of A and Q.

    Args:
        draws: number of pairs; both of a pair share A.
        after: the steps at which the loss is taken.

    Returns:
        For each of these steps the mean of the differences and its standard error.
    """
    differences = []
    for seed in range(100, 100 + 2 * draws, 2):
        both = (draw_orthogonal(seed=seed + 1), identities())
        one, other = (train(dense(draw_a(seed=seed), ms, learned=True), rule).deltas for ms in both)
        differences.append([loss(one[step - 1]) - loss(other[step - 1]) for step in after])
    values = torch.tensor(differences, dtype=torch.float64)
    means = values.mean(0).tolist()
    errors = (values.std(0) / draws**0.5).tolist()
    return {step: (mean, error) for step, mean, error in zip(after, means, errors, strict=True)}
