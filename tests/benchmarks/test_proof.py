"""Every claim of docs/proof.md: the same trajectory (1e-10, float64), or apart by 10⁶ times SGD's rounding."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.research.comparisons import (
    butterfly,
    butterfly_distances,
    comparisons,
    drift,
    half_rank,
    identities,
    path,
    smallest_growth,
    start_matters,
    twin_rule,
)
from benchmarks.research.proof import largest_table, measure, twins_table
from benchmarks.research.trajectories import (
    RANK,
    ROUNDING,
    SCALE,
    STEPS,
    Start,
    dense,
    distance,
    draw_a,
    draw_kaiming,
    draw_orthogonal,
    draw_signed_permutation,
    folded,
    lora,
    loss,
    train,
)
from benchmarks.research.update_rules import (
    ADAM,
    ADAMW,
    CLIP_VALUE,
    ELEMENTWISE,
    EQUIVARIANT,
    LION,
    MOMENTUM,
    MUON,
    NESTEROV,
    SGD,
    TORCH_MUON,
    Lion,
    Rule,
    polar,
)

RULES = (*EQUIVARIANT, *ELEMENTWISE)
INVISIBLE = {"P": RULES, **dict.fromkeys(("Q", "Q or none", "R", "half", "Q or I learned"), EQUIVARIANT)}
"""Comparison -> the rules under which it is of equals."""

LEARNED = ("Q learned", "I learned", "K learned")
AGAINST_LORA = ("Q", "P", "R", "half", "2Q", "K", *LEARNED)

QUICK = (SGD, MUON, ADAM)
"""Rules of both kinds; the others are slow only because they are many."""

by_name = pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=() if rule in QUICK else pytest.mark.slow, id=rule.name) for rule in RULES],
)


@cache
def distances(key: str, rule: Rule) -> Tensor:
    return comparisons()[key].distances(rule)


def apart(one: Start, other: Start, rule: Rule, others_rule: Rule | None = None) -> float:
    """The largest distance of two trainings, of which the second may have a rule of its own."""
    return distance(train(one, rule), train(other, others_rule or rule)).max().item()


def far() -> float:
    return 1e6 * max(distances("Q", SGD).max().item(), 1e-16)


def generic(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@by_name
def test_training_moves(rule):
    """A distance of zero between two adapters that stand still would say nothing."""
    deltas = train(lora(draw_a()), rule).deltas
    assert loss(deltas[-1]) < 0.5 * loss(torch.zeros_like(deltas[0]))
    assert deltas[-1].norm() > 1


@pytest.mark.parametrize("key", [*INVISIBLE, "2Q", "K", *LEARNED])
@by_name
def test_which_mixers_training_sees(rule, key):
    """Singular values of one are invisible to equivariant updates only, signed permutations to all, and no others."""
    largest = distances(key, rule).max()
    if rule in INVISIBLE.get(key, ()):
        assert largest <= ROUNDING
    else:
        assert largest >= max(far(), 1e-2)


def test_orthonormal_columns_fold_into_either_side():
    """M of 6 × 4: into A, LoRA of rank 6 from MA; into B, which is zero, LoRA of rank 4 from A itself."""
    tall = dense(draw_a(), tuple(m[:, :RANK] for m in draw_orthogonal(RANK + 2)), learned=False)
    for rule in EQUIVARIANT:
        assert apart(tall, folded(tall), rule) <= ROUNDING
        assert apart(tall, lora(draw_a()), rule) <= ROUNDING
    assert apart(tall, folded(tall), ADAM) > 1e-2


@pytest.mark.parametrize("rule", [NESTEROV, MUON], ids=lambda rule: rule.name)
def test_a_rate_of_its_own_for_a_changes_nothing(rule):
    pair = comparisons()["Q"]
    own = replace(rule, rate_a=3.0)
    assert apart(pair.start, pair.twin, own) <= ROUNDING
    assert apart(pair.start, pair.start, own, rule) > 1e-2


@pytest.mark.parametrize("rule", [SGD, MOMENTUM, NESTEROV], ids=lambda rule: rule.name)
def test_scaled_orthogonal_is_lora_with_another_rate_of_a(rule):
    assert distances("2Q rated", rule).max() <= ROUNDING


def test_scaled_mixers_under_updates_that_do_not_know_the_gradients_size():
    """The rate of A is multiplied by c, not c²; Adam's eps for A divided by it."""
    turned = dense(draw_a(), tuple(2 * m for m in draw_orthogonal()), learned=False)
    permuted = dense(draw_a(), tuple(2 * m for m in draw_signed_permutation()), learned=False)
    for start, rule in ((turned, MUON), (permuted, ADAM), (permuted, ADAMW), (permuted, LION)):
        assert apart(start, folded(start), rule, replace(rule, rate_a=2.0, eps_a=0.5)) <= ROUNDING
        assert apart(start, folded(start), rule, replace(rule, rate_a=4.0)) > 1e-2


@by_name
def test_the_first_step_does_not_see_the_mixer(rule):
    """B = 0: the gradients of A and M are zero, and so are their updates; the second step sees a learned M."""
    for key in AGAINST_LORA:
        assert distances(key, rule)[0] <= ROUNDING
    start = comparisons()["K learned"].start
    first = train(start, replace(rule, decay=0.0)).layers[0]
    for layer, a, mixer in zip(first, start.a, start.mixers, strict=True):
        assert layer.a.equal(a)
        assert layer.m.equal(mixer.matrix())
        assert layer.b.norm() > 1e-3
    assert min(distances(key, rule)[1] for key in LEARNED) >= far()


def test_the_second_step_differs_by_the_square_of_the_rate():
    values = [distances("Q learned", replace(SGD, lr=SGD.lr / k))[1].item() for k in (8, 16, 32)]
    assert [a / b for a, b in pairwise(values)] == pytest.approx([4, 4], rel=0.05)


def test_one_step_from_anywhere_is_the_formula():
    """LoRA's ΔW minus the mixer's: B₁ [η (MMᵀ − I) X + η X Aᵀ (A − η MᵀX)], X = BᵀG, from autograd and from algebra."""
    a = generic(4, 7, seed=0)
    m = generic(3, 4, seed=1)
    b = generic(5, 3, seed=2)
    w = generic(5, 7, seed=3)
    x = generic(20, 7, seed=9)
    eta = 0.1

    def step(*factors: Tensor) -> list[Tensor]:
        leaves = [factor.clone().requires_grad_() for factor in factors]
        delta = torch.linalg.multi_dot([*leaves])
        torch.tanh(x @ (w + delta).T).square().sum().div(20).backward()
        return [leaf.detach() - eta * leaf.grad for leaf in leaves if leaf.grad is not None]

    mixed = torch.linalg.multi_dot(step(b, m, a))
    plain = torch.linalg.multi_dot(step(b, m @ a))
    delta = (b @ m @ a).requires_grad_()
    torch.tanh(x @ (w + delta).T).square().sum().div(20).backward()
    assert delta.grad is not None
    pull = b.T @ delta.grad
    b1 = b - eta * delta.grad @ a.T @ m.T
    expected = b1 @ (eta * (m @ m.T - torch.eye(3)) @ pull + eta * pull @ a.T @ (a - eta * m.T @ pull))
    torch.testing.assert_close(plain - mixed, expected, rtol=1e-10, atol=1e-12)
    assert expected.norm() > 1e-3


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("rule", [SGD, NESTEROV, MUON, CLIP_VALUE, ADAM], ids=lambda rule: rule.name)
def test_only_mtm_of_the_start_matters(rule, learned):
    """B₀ = 0: (A, M₀) starts as (A, PM₀) does, and M₀ = USVᵀ from A as S from VᵀA, for orthogonal P."""
    a = draw_a()
    ms = draw_kaiming()
    _, s, vh = zip(*(torch.linalg.svd(m) for m in ms), strict=True)
    mixed = dense(a, ms, learned=learned)
    turned = dense(a, tuple(p @ m for p, m in zip(draw_orthogonal(seed=8), ms, strict=True)), learned=learned)
    rotated = tuple(v @ factor for v, factor in zip(vh, a, strict=True))
    values = dense(rotated, tuple(torch.diag(sigma) for sigma in s), learned=learned)
    for other in (turned, values):
        largest = apart(mixed, other, rule)
        assert largest <= ROUNDING if rule in EQUIVARIANT else largest > 1e-2


def test_a_step_of_sgd_moves_the_invariant_by_the_square_of_the_rate():
    """BᵀB − MMᵀ changes by η² (∂Bᵀ∂B − ∂M∂Mᵀ), and by nothing else; AAᵀ − MᵀM likewise. First layer."""
    learned = path(comparisons()["K learned"].start, SGD)
    for before, after in pairwise(state[0] for state in learned.layers):
        a, m, b = (new - old for new, old in zip(after, before, strict=True))
        (left, right), (left_before, right_before) = (
            (x.b.T @ x.b - x.m @ x.m.T, x.a @ x.a.T - x.m.T @ x.m) for x in (after, before)
        )
        torch.testing.assert_close(left - left_before, b.T @ b - m @ m.T, rtol=0, atol=1e-14)
        torch.testing.assert_close(right - right_before, a @ a.T - m.T @ m, rtol=0, atol=1e-14)


@pytest.mark.parametrize("key", ["Q learned", "K learned"])
def test_an_unlearned_direction_is_kept_by_small_steps_of_sgd_but_not_of_adam(key):
    """Halving SGD's rate halves the drift of BᵀB − MMᵀ, which bounds what MMᵀ − M₀M₀ᵀ can fall below zero."""
    start = comparisons()[key].start
    drifts, falls = {}, {}
    for rule in (SGD, ADAM):
        paths = [path(start, rule, repeat=repeat) for repeat in (1, 2, 4)]
        drifts[rule] = [drift(one, start).max().item() for one in paths]
        falls[rule] = [-smallest_growth(one, start).min().item() for one in paths]
    assert [a / b for a, b in pairwise(drifts[SGD])] == pytest.approx([2, 2], rel=0.1)
    assert all(fall <= moved for fall, moved in zip(falls[SGD], drifts[SGD], strict=True))
    assert falls[SGD][0] > 2 * falls[SGD][1] > 4 * falls[SGD][2]
    assert smallest_growth(path(start, SGD, repeat=4), start)[-1] > 0
    assert min(drifts[ADAM]) > 0.5 and min(falls[ADAM]) > 5e-3
    assert falls[ADAM][2] > 0.5 * falls[ADAM][0]


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
@by_name
def test_two_subspaces_are_lora_of_half_the_rank_at_another_rate(rule, normalize):
    twin = twin_rule(rule, normalize=normalize)
    expected = {"sgd": (2.0, 1.0), "muon": (2**0.5, 1.0)}.get(rule.kind, (2.0, 2**0.5))[normalize]
    assert twin.lr / rule.lr == pytest.approx(expected)
    with_twin, with_same = butterfly_distances(rule, normalize=normalize)
    assert with_twin.max() <= ROUNDING
    if normalize and rule in EQUIVARIANT:
        assert with_same.max() <= ROUNDING
    else:
        assert with_same.max() >= far()


def test_what_two_subspaces_do_not_use():
    """A₁ − A₂ never moves, and ΔW has half the rank."""
    start = butterfly(normalize=False)
    last = train(start, SGD).layers[-1]
    for layer, a in zip(last, start.a, strict=True):
        torch.testing.assert_close(layer.a[:RANK] - layer.a[RANK:], a[:RANK] - a[RANK:], rtol=0, atol=1e-13)
        values = torch.linalg.svdvals(SCALE * layer.b @ layer.m @ layer.a)
        assert values[RANK - 1] > 1e-3
        assert values[RANK] <= ROUNDING
    assert [len(a) for a in half_rank(start, normalize=False).a] == [RANK, RANK]


def test_an_invertible_mixer_reaches_what_lora_reaches():
    """D = PQ is B · M · A with B = P and A = M⁻¹Q; two subspaces reach half that rank alone."""
    p = generic(9, RANK, seed=1)
    q = generic(RANK, 7, seed=2)
    for m in (*draw_kaiming(), *draw_orthogonal(), *draw_signed_permutation(), *identities()):
        torch.testing.assert_close(p @ m @ torch.linalg.solve(m, q), p @ q, rtol=1e-10, atol=1e-10)
    butterfly_m = butterfly(normalize=False).mixers[0].matrix()
    assert torch.linalg.matrix_rank(butterfly_m) == RANK == len(butterfly_m) // 2


def test_polar_factor_and_lion_are_what_they_are_called():
    x = generic(4, 7, seed=3)
    q = draw_orthogonal()[0]
    torch.testing.assert_close(polar(x) @ polar(x).T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(x @ polar(x).T)[0] > 0
    torch.testing.assert_close(polar(q @ x), q @ polar(x), rtol=0, atol=1e-12)
    assert polar(torch.zeros(3, 5)).norm() == 0
    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    lion = Lion([{"params": [parameter], "lr": 0.1, "weight_decay": 0.5}], {})
    for gradient, expected in ((2.0, 0.95 - 0.1), (-0.1, 0.95 * 0.85 - 0.1), (-0.5, 0.95 * 0.7075 + 0.1)):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        lion.step()
        assert parameter.item() == pytest.approx(expected)


def test_torchs_muon_is_not_exact():
    """It iterates in bfloat16: the same trajectory to two or three digits only."""
    largest = distances("Q", TORCH_MUON).max()
    assert 1e6 * distances("Q", MUON).max() < largest < 0.1


@pytest.mark.slow
def test_adam_tells_an_orthogonal_start_from_the_identity_and_sgd_does_not():
    """The signs that section 6 reads from its table, from the first of its draws, which agree with its numbers."""
    draws = 30
    after = (10, STEPS)
    (early, early_error), (late, late_error) = start_matters(ADAM, draws=draws, after=after).values()
    assert early > 2 * early_error > 0
    assert late < -2 * late_error < 0
    label, *cells = page_table("starts")[-1]
    assert label == ADAM.name
    for cell, mean, error in zip(cells, (early, late), (early_error, late_error), strict=True):
        shown, shown_error = (float(part) / 1e3 for part in cell.split(" ± "))
        assert abs(shown - mean) < 2 * error
        assert shown_error == pytest.approx(error * (draws / 100) ** 0.5, rel=0.5)
    for mean, error in start_matters(SGD, draws=3, after=after).values():
        assert abs(mean) <= ROUNDING
        assert error <= ROUNDING


PAGE = (Path(__file__).parents[2] / "docs" / "proof.md").read_text(encoding="utf-8")


def rows_of(block: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in block.strip().splitlines()]


def page_table(name: str) -> list[list[str]]:
    return rows_of(PAGE.split(f"<!-- table: {name} -->")[1].split("<!-- /table")[0])


def step_of_the_last_digit(cell: str) -> float:
    digits, _, exponent = cell.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def agree(shown: str, made: str, *, factor: float) -> bool:
    """Text is the same; a number is rounding where the other is, and else off by one in its last digit or a factor."""
    if not shown.replace("e-", "").replace(".", "").isdigit():
        return shown == made
    low, high = sorted((float(shown), float(made)))
    near = high - low < 1.5 * min(step_of_the_last_digit(shown), step_of_the_last_digit(made))
    return high <= ROUNDING or (low > ROUNDING and (near or high / low < factor))


@pytest.mark.parametrize(("name", "make"), [("largest", lambda: largest_table(measure())), ("twins", twins_table)])
def test_every_number_of_the_page_is_what_the_command_computes(name, make):
    """As printed; torch's Muon, which rounds to bfloat16 as the processor does, within a factor of two."""
    shown, made = page_table(name), rows_of(make())
    for row, expected in zip(shown, made, strict=True):
        for column, cell, number in zip(made[0], row, expected, strict=True):
            factor = 2.0 if column == TORCH_MUON.name else 1.0
            assert agree(cell, number, factor=factor), (expected[0], column, cell, number)
