"""What is compared: mixers with LoRA or with each other, butterflies with their twins."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.article.trajectories import (
    RANK,
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
from benchmarks.article.update_rules import Rule
from moslora.adapters import build_mixer


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
    wide = draw_a(RANK + 2)
    q = draw_orthogonal()
    p = draw_signed_permutation()
    kaiming = draw_kaiming()
    double = tuple(2 * m for m in q)
    orthonormal = tuple(m[:RANK] for m in draw_orthogonal(RANK + 2))
    half_columns = [m[:, : RANK // 2] for m in q]
    half_rows = [m[: RANK // 2] for m in draw_orthogonal(seed=5)]
    half = tuple(columns @ rows for columns, rows in zip(half_columns, half_rows, strict=True))
    eyes = identities()

    turned = dense(a, q, learned=False)
    scaled = dense(a, double, learned=False)
    learned = dense(a, q, learned=True)
    from_eyes = dense(a, eyes, learned=True)
    from_kaiming = dense(a, kaiming, learned=True)
    lora_a = folded(dense(a, eyes, learned=False))
    lora_turned = folded(turned)
    lora_scaled = folded(scaled)
    lora_kaiming = folded(from_kaiming)

    def against_lora(label: str, start: Start) -> Comparison:
        return Comparison(label, start, folded(start))

    return {
        "Q": Comparison("orthogonal Q, fixed", turned, lora_turned),
        "Q or none": Comparison("orthogonal Q, fixed; LoRA from A itself", turned, lora_a),
        "P": against_lora("signed permutation P, fixed", dense(a, p, learned=False)),
        "R": against_lora(f"orthonormal rows R ({RANK} × {RANK + 2}), fixed", dense(wide, orthonormal, learned=False)),
        "half": against_lora("singular values 1, 1, 0, 0, fixed", dense(a, half, learned=False)),
        "2Q rated": Comparison("2Q, fixed; LoRA with 4 × the rate of A", scaled, lora_scaled, rate_a=4.0),
        "2Q": Comparison("2Q, fixed", scaled, lora_scaled),
        "K": Comparison("Kaiming K, fixed", dense(a, kaiming, learned=False), lora_kaiming),
        "Q learned": Comparison("orthogonal, learned", learned, lora_turned),
        "I learned": Comparison("identity, learned", from_eyes, lora_a),
        "K learned": Comparison("Kaiming, learned", from_kaiming, lora_kaiming),
        "Q or I learned": Comparison("orthogonal against identity, both learned", learned, from_eyes),
    }


def identities() -> tuple[Tensor, ...]:
    return tuple(torch.eye(RANK, dtype=torch.float64) for _ in draw_a())


def butterfly(*, normalize: bool) -> Start:
    """Two-subspace mixing of rank 2 · RANK; normalised, M is halved."""
    a = draw_a(2 * RANK)
    return Start(a, tuple(build_mixer(kind="butterfly", rank=len(factor), normalize=normalize) for factor in a))


def half_rank(start: Start, *, normalize: bool) -> Start:
    """The butterfly's twin of rank RANK: from A₁ + A₂; normalised, from (A₁ + A₂) / √2."""
    gain = 1.0
    if normalize:
        gain = 2**0.5
    return folded(start, gain=gain)


def twin_rule(rule: Rule, *, normalize: bool) -> Rule:
    """The rule under which the twin takes the butterfly's steps.

    Either half of a factor sees ``scale`` times the twin's gradient, and the sum of both counts ``scale`` times in the
    twin's factor. The first does not matter to an update that ignores the gradient's size. Muon's polar factor of two
    equal halves is that of one half over √2.
    """
    scale = 1.0
    if normalize:
        scale = 2**-0.5
    rate = 2 * scale
    if rule.kind == "sgd":
        rate *= scale
    elif rule.kind == "muon":
        rate *= 2**-0.5
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
    under_twin_rule = train(twin, twin_rule(rule, normalize=normalize))
    under_own_rule = train(twin, rule)
    return distance(mixed, under_twin_rule), distance(mixed, under_own_rule)


def smallest_growth(trajectory: Trajectory, start: Start) -> Tensor:
    """eig_min(M Mᵀ − M₀ M₀ᵀ) after each step, the smaller of the layers'; shape ``(steps,)``."""
    first = [mixer.matrix().detach() for mixer in start.mixers]
    growth = []
    for layers in trajectory.layers:
        of_step = [layer.m @ layer.m.T - m @ m.T for layer, m in zip(layers, first, strict=True)]
        growth.append(torch.stack(of_step))
    return torch.linalg.eigvalsh(torch.stack(growth)).amin((1, 2))


def drift(trajectory: Trajectory, start: Start) -> Tensor:
    """‖(BᵀB − M Mᵀ) − (its start)‖ after each step, Frobenius over both layers; shape ``(steps,)``."""
    first = [mixer.matrix().detach() for mixer in start.mixers]
    changes = []
    for layers in trajectory.layers:
        of_step = []
        for layer, m in zip(layers, first, strict=True):
            of_step.append(layer.b.T @ layer.b - layer.m @ layer.m.T + m @ m.T)
        changes.append(torch.stack(of_step))
    return torch.stack(changes).flatten(1).norm(dim=1)


def start_matters(rule: Rule, *, draws: int, after: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """Loss of a learned mixer from an orthogonal start minus that from the identity, over draws of A and Q.

    Args:
        draws: number of pairs; both of a pair share A.
        after: the steps at which the loss is taken.

    Returns:
        For each of these steps the mean of the differences and its standard error.
    """
    differences = []
    for seed in range(draws):
        a = draw_a(seed=100 + 2 * seed)
        q = draw_orthogonal(seed=101 + 2 * seed)
        from_orthogonal = train(dense(a, q, learned=True), rule).deltas
        from_identity = train(dense(a, identities(), learned=True), rule).deltas
        differences.append([loss(from_orthogonal[step - 1]) - loss(from_identity[step - 1]) for step in after])
    values = torch.tensor(differences, dtype=torch.float64)
    means = values.mean(0).tolist()
    errors = (values.std(0) / draws**0.5).tolist()
    return {step: (mean, error) for step, mean, error in zip(after, means, errors, strict=True)}
