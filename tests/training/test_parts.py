"""The objective and the optimizer against naive computations and transformers' own schedules."""

import copy
import math

import pytest
import torch
import transformers

from moslora.adapters import MIXERS, inject
from moslora.kernels import loss, rows, vocabulary
from moslora.kernels.loss import ChunkedLoss
from moslora.recipe import TrainingSection
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer, rate_factor, set_rate, trainable, update
from reference import as_micro_batch, perturb, tiny_llama, token_batch

OPTIONS = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(params=["a CPU's", "a GPU's"])
def way(request, monkeypatch):
    """The loss's way on each device, here both on the CPU."""
    if request.param == "a GPU's":
        monkeypatch.setattr(loss, "_by_pieces", vocabulary.label_loss)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("piece", [(1, 60), (7, 100), (99, 320), (99, 7)])
def test_loss_at_labels_equals_the_loss_of_all_logits(monkeypatch, piece, share):
    """Float64, against the whole model's logits, row by row, whatever the pieces in which they are taken, and with what
    all rows begin with computed once or in each."""
    monkeypatch.setattr(vocabulary, "PIECE_ON_CPU", piece)
    model = tiny_llama(dtype=torch.float64)
    inject(model, **OPTIONS, mixer={"kind": "dense"})
    model.double()
    perturb((p for p in model.parameters() if p.requires_grad), size=0.2)
    naive = copy.deepcopy(model)
    ids = token_batch(model, rows=3, length=12)
    ids[1:, :3] = ids[0, :3]
    lengths = (12, 7, 9)
    begins = (4, 5, 0)
    batch = as_micro_batch(ids, lengths=lengths, begins=begins, share=share)
    laid = lengths
    if share:
        laid = (3, 4, 6, 9)
    assert batch.rows.lengths == laid
    loss, _ = LabelLoss(model)(batch)
    (2 * loss).backward()

    expected = torch.zeros((), dtype=torch.float64)
    for row, (length, begin) in enumerate(zip(lengths, begins, strict=True)):
        logits = naive(ids[row : row + 1, :length]).logits[0]
        log_p = torch.log_softmax(logits, -1)
        for position in range(max(begin, 1), length):
            expected = expected - log_p[position - 1, ids[row, position]]
    (2 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, mine), (_, other) in zip(model.named_parameters(), naive.named_parameters(), strict=True):
        if mine.requires_grad:
            assert (mine.grad - other.grad).abs().max() < 1e-5 * other.grad.abs().max(), name


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.0), (torch.float16, 1e-3)])
@pytest.mark.parametrize("piece", [(99, 120), (7, 30)])
def test_a_label_that_is_nearly_certain_has_its_gradient(monkeypatch, piece, dtype, least):
    """Against (p − e_y) W in float64 over the same logits, the label's not rounded. 1 − p is from 0.5 to 1e-7; rounded,
    p is 1 from .998 on. In float16, which has no numbers below 6e-8, where 1 − p is larger than that by far."""
    monkeypatch.setattr(vocabulary, "PIECE_ON_CPU", piece)
    torch.manual_seed(0)
    weight = torch.randn(120, 32).to(dtype)
    labels = torch.randint(120, (40,))
    sizes = torch.linspace(0.1, 0.6, 40)[:, None]
    hidden = (sizes * weight[labels]).to(dtype).requires_grad_()
    of_labels = (hidden.double() * weight[labels].double()).sum(1, keepdim=True)
    p = (hidden @ weight.T).double().scatter(1, labels[:, None], of_labels).softmax(1).detach()
    others = 1 - p.gather(1, labels[:, None])[:, 0]
    assert others.min() < 1e-6 and others.max() > 0.3
    loss = ChunkedLoss.apply(hidden, weight, labels)
    loss.backward()
    assert loss.item() == pytest.approx(float(-(1 - others).log().sum()), rel=0.02)
    expected = (p - torch.nn.functional.one_hot(labels, 120)) @ weight.double()
    error = (hidden.grad.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error[others > least].max() < 0.01


@pytest.mark.parametrize("mixer", [{"kind": "dense"}, {"kind": "token-gate", "top_k": 2, "balance": 0.1}])
def test_padding_tokens_do_not_count(monkeypatch, mixer):
    """Float64: loss, penalty and gradients are those of the sequence as it is."""
    model = tiny_llama(dtype=torch.float64)
    inject(model, **OPTIONS, mixer=mixer)
    model.double()
    perturb((p for p in model.parameters() if p.requires_grad), size=0.2)
    ids = token_batch(model, rows=3, length=12)
    learned = [p for p in model.parameters() if p.requires_grad]
    found = []
    for filled_from, length in ((1, 32), (99, 28)):
        monkeypatch.setattr(rows, "FILLED_FROM", filled_from)
        batch = as_micro_batch(ids, lengths=(7, 9, 12), begins=(5, 4, 0))
        assert batch.input_ids.shape[1] == length
        loss, penalty = LabelLoss(model).train()(batch)
        assert bool(penalty) == ("balance" in mixer)
        found.append((loss, penalty, *torch.autograd.grad(loss + penalty, learned)))
    filled, plain = found
    torch.testing.assert_close(filled, plain, rtol=1e-9, atol=1e-12)


def test_batch_without_labels_has_zero_gradients():
    model = tiny_llama()
    inject(model, **OPTIONS, mixer={"kind": "dense"})
    ids = token_batch(model)
    loss, _ = LabelLoss(model)(as_micro_batch(ids, begins=[ids.shape[1]] * len(ids)))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(schedule):
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = schedule
    if schedule == "constant":
        name = "constant_with_warmup"
    theirs = transformers.get_scheduler(name, dummy, num_warmup_steps=3, num_training_steps=20)
    for step in range(20):
        mine = rate_factor(step, schedule=schedule, warmup_steps=3, total_steps=20)
        assert mine == pytest.approx(theirs.get_last_lr()[0], abs=1e-12), step
        dummy.step()
        theirs.step()


def mixers_with_and_without_dora():
    cases = []
    for mixer in (*({"kind": kind} for kind in MIXERS), {"kind": "token-gate", "top_k": 2, "balance": 0.1}):
        name = "-".join(str(value) for value in mixer.values())
        cases.append(pytest.param(mixer, False, id=name))
        if not MIXERS[mixer["kind"]].options_type.routes:
            cases.append(pytest.param(mixer, True, id=f"{name}-dora"))
    return cases


RATE_AND_DECAY = {"lora_a": (1e-3, 0.1), "lora_b": (8e-3, 0.1), "magnitude.weight": (1e-3, 0.0), "mixer": (5e-3, 0.0)}


@pytest.mark.parametrize(("mixer", "dora"), mixers_with_and_without_dora())
def test_each_parameter_group_has_its_rate_and_decay(mixer, dora):
    """Adam's first step is the rate itself, whatever the gradient; the decay is rate · λ · weight. For every mixer.

    A at 1e-3, B at 8 times that (LoRA+), M at 5e-3 without decay, the magnitudes at A's rate without decay, all halved
    by a schedule.
    """
    model = tiny_llama().double()
    inject(model, **OPTIONS, mixer=mixer, dora=dora)
    model.double()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    perturb(learned.values(), size=0.2)
    rates = TrainingSection(learning_rate=1e-3, lora_plus_ratio=8.0, mixer_rate_ratio=5.0, weight_decay=0.1, eps=1e-30)
    optimizer = build_optimizer(model, rates)
    assert sorted(map(id, trainable(optimizer))) == sorted(map(id, learned.values()))
    set_rate(optimizer, rate_factor(10, schedule="linear", warmup_steps=0, total_steps=20))
    for p in learned.values():
        p.grad = torch.randn_like(p)
    before = {name: p.detach().clone() for name, p in learned.items()}
    optimizer.step()
    for name, p in learned.items():
        part = name.split(".", 5)[-1]
        if part.startswith("mixer."):
            part = "mixer"
        rate, decay = RATE_AND_DECAY[part]
        expected = before[name] * (1 - rate / 2 * decay) - rate / 2 * p.grad.sign()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_update_that_is_not_finite_changes_nothing(wrong):
    """Neither weights nor moments nor AdamW's count; an update before and after is torch's own, clipped, to the bit."""
    model = tiny_llama()
    inject(model, **OPTIONS, mixer={"kind": "dense"})
    plain = copy.deepcopy(model)
    optimizer = build_optimizer(model, TrainingSection())
    expected = build_optimizer(plain, TrainingSection())
    scaler = torch.amp.GradScaler(enabled=False)
    for factor in (1.0, wrong, 2.0):
        torch.manual_seed(0)
        for mine, other in zip(trainable(optimizer), trainable(expected), strict=True):
            mine.grad = factor * torch.randn_like(mine)
            other.grad = mine.grad.clone()
        norm = update(optimizer, scaler, max_norm=0.5)
        assert bool(norm.isfinite()) == math.isfinite(factor)
        if norm.isfinite():
            assert norm == torch.nn.utils.clip_grad_norm_(trainable(expected), 0.5) > 0.5
            expected.step()
        for mine, other in zip(trainable(optimizer), trainable(expected), strict=True):
            assert mine.equal(other)
            assert all(value.equal(expected.state[other][key]) for key, value in optimizer.state[mine].items())
