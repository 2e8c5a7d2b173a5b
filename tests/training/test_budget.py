"""The rank budget against stock PEFT's AdaLoRA, against its equations in plain float64."""

import peft
import pytest
import torch
from torch.nn import functional as F

from moslora.adapters import adapter_penalty, inject, named_adapters
from moslora.errors import UsageError
from moslora.recipe import RankBudgetSection
from moslora.training import budget as budgets
from moslora.training.budget import RankBudget, budget_at
from reference import PROJECTIONS, perturb, tiny_llama, token_batch

ALPHA, RANK, TARGET, BETAS = 16.0, 6, 2, (0.85, 0.7)
DIAGONAL = {"kind": "diagonal", "orthogonality": 0.2}


@pytest.fixture(autouse=True)
def two_betas(monkeypatch):
    """Set two different β, so that an exchange shows."""
    monkeypatch.setattr(budgets, "BETAS", BETAS)


def adapted(*, targets=PROJECTIONS, rank=RANK, move=False):
    """Tiny LLaMA in float64 with diagonal mixers; ``move`` takes A, B and e off their start."""
    model = tiny_llama(dtype=torch.float64)
    inject(model, rank=rank, alpha=ALPHA, mixer=DIAGONAL, target_modules=targets)
    model.double()
    if move:
        perturb((p for p in model.parameters() if p.requires_grad), size=0.3)
    return model


def next_token_loss(logits, ids):
    """Loss in the dtype of the logits; transformers' own goes through float32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def label_loss(model, ids):
    return next_token_loss(model(ids).logits, ids)


def entries(model):
    """e of all layers, one after the other."""
    return torch.cat([layer.mixer.weight.detach() for _, layer in named_adapters(model)])


def survivors(model):
    return int(entries(model).count_nonzero())


def budget_of(model, *, warmup=3, final=5, total=25, target_rank=TARGET):
    shares = {"warmup_share": warmup / total, "final_share": final / total}
    section = RankBudgetSection(target_rank=target_rank, **shares)
    return RankBudget(model, section, total=total)


# The schedule


@pytest.mark.parametrize(("warmup", "final", "total"), [(0, 1, 2), (3, 5, 25), (0, 9, 10), (8, 1, 10), (50, 30, 1000)])
def test_the_budget_is_that_of_peft(warmup, final, total):
    model = tiny_llama(layers=1)
    config = peft.AdaLoraConfig(
        init_r=RANK, target_r=TARGET, tinit=warmup, tfinal=final, deltaT=1, total_step=total, target_modules=PROJECTIONS
    )
    schedule = peft.get_peft_model(model, config).base_model.rankallocator.budget_schedule
    for step in range(total + 1):
        mine = budget_at(step, first=RANK * 5, target=TARGET * 5, warmup=warmup, final=final, total=total)
        assert mine == schedule(step)[0], step


# The choice


def test_training_equals_stock_peft_adalora():
    """25 AdamW steps with penalty and pruning in float64: A, B and e to 1e-9 and the same survivors after every one.

    PEFT's scale α/(r + 1e-5) is taken over here. Seeds and sizes leave no two scores equal: at a tie PEFT masks all.
    """
    ours, theirs = adapted(), tiny_llama(dtype=torch.float64)
    config = peft.AdaLoraConfig(
        init_r=RANK,
        target_r=TARGET,
        tinit=3,
        tfinal=5,
        deltaT=1,
        beta1=BETAS[0],
        beta2=BETAS[1],
        orth_reg_weight=DIAGONAL["orthogonality"],
        total_step=25,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",  # without it PEFT leaves the penalty out
    )
    theirs.loss_function = lambda logits, labels, **_: next_token_loss(logits, labels)
    theirs = peft.get_peft_model(theirs, config).double()
    pairs = []
    for name, layer in named_adapters(ours):
        layer.scale = ALPHA / (RANK + 1e-5)
        module = theirs.base_model.model.get_submodule(name)
        other = [getattr(module, part)["default"] for part in ("lora_A", "lora_B", "lora_E")]
        for mine, stock in zip((layer.lora_a, layer.lora_b, layer.mixer.weight), other, strict=True):
            stock.data.copy_(mine.data.view_as(stock))
            pairs.append((mine, stock))
    budget = budget_of(ours)
    ids = token_batch(ours)
    optimizers = [torch.optim.AdamW(part, lr=2e-2, weight_decay=0.1) for part in zip(*pairs, strict=True)]
    counts = []
    for step in range(1, 26):
        penalty = adapter_penalty(ours)
        assert penalty is not None
        loss = label_loss(ours, ids) + penalty
        other_loss = theirs(input_ids=ids, labels=ids).loss
        assert loss.item() == pytest.approx(other_loss.item(), rel=1e-9), step
        loss.backward()
        other_loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        budget.prune(step)
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        for mine, stock in pairs:
            torch.testing.assert_close(mine, stock.view_as(mine), rtol=1e-9, atol=1e-9, msg=f"step {step}")
            assert mine.ne(0).equal(stock.view_as(mine).ne(0)), step
        counts.append(survivors(ours))
    assert counts[:3] == [60] * 3 and counts[19:] == [20] * 6 and len(set(counts)) > 6


@pytest.mark.parametrize("target", [1, 2, RANK])
@pytest.mark.parametrize("tied", [False, True])
def test_exactly_the_budget_survives_every_choice(target, tied):
    """The most important entries survive, also with all scores equal, and with a target that equals the start."""
    model = adapted(targets=["q_proj", "v_proj"], move=True)
    budget = budget_of(model, target_rank=target, total=12, warmup=2, final=3)
    for step in range(1, 13):
        perturb([layer.mixer.weight for _, layer in named_adapters(model)], seed=step)  # dropped ones come back
        assert survivors(model) == 4 * RANK
        for p in (p for p in model.parameters() if p.requires_grad):
            p.grad = torch.zeros_like(p) if tied else torch.randn_like(p)
        before = entries(model)
        wanted = budget.prune(step)["rank_budget"]
        kept = entries(model) != 0
        assert survivors(model) == wanted
        assert entries(model)[kept].equal(before[kept])
        if tied:
            assert kept[: int(wanted)].all()
        elif wanted < 4 * RANK:
            assert budget.scores()[kept].min() > budget.scores()[~kept].max()
    assert wanted == 4 * target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 20}, "warm-up .*20 .*5 .*25"),
        ({"final": 24, "warmup": 1}, "warm-up .*1 .*24 .*25"),
        ({"final": 0, "total": 1, "warmup": 0}, "warm-up .*0 .*1 .*1"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        budget_of(adapted(), **changes)
