"""The mixers that route, against experts run one after another."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moslora.adapters import AdapterLinear, describe_batch
from moslora.adapters.mixers.gates import TaskGateMixer, TokenGateMixer
from reference import adapted_linear

IN, OUT, RANK, SCALE = 10, 7, 8, 1.7
TASKS = [2, 0, 1]

KINDS = {
    "dense": {"kind": "token-gate"},
    "top-k": {"kind": "token-gate", "top_k": 2},
    "inside": {"kind": "gate-inside"},
    "task": {"kind": "task-gate", "tasks": ["one", "two"], "embedding_size": 5},
}


def layer_of(kind, *, experts=4, size=0.7):
    """A perturbed layer in float64, tasks named."""
    layer = adapted_linear({**KINDS[kind], "experts": experts}, size=size, rank=RANK)
    describe_batch(layer, tasks=torch.tensor(TASKS))
    return layer


def token_gates(x, weight, top_k=None):
    """softmax(R x) for every token; with ``top_k`` the others at zero and the rest scaled to sum to one."""
    gates = torch.softmax(x @ weight.T, -1)
    if top_k is None:
        return gates
    last = gates.sort(-1, descending=True).values[..., top_k - 1 : top_k]
    gates = torch.where(gates >= last, gates, 0.0)
    return gates / gates.sum(-1, keepdim=True)


def task_gates(x, embedding, weight):
    """softmax(G e) with the embedding e of each row's task, the same for all tokens of the row."""
    return torch.stack([torch.softmax(weight @ embedding[task], 0).expand(*x.shape[1:-1], -1) for task in TASKS])


def one_by_one(layer, learned, x):
    """y = base(x) + s Σᵢ gᵢ(x) · Bᵢ Aᵢ x: experts run one after another, as the released ones are, with the weights
    ``learned``.

    With gates on both factors, y = base(x) + s Σⱼ g_B,ⱼ Bⱼ Σᵢ g_A,ᵢ Aᵢ x.
    """
    mixer = layer.mixer
    hidden = [F.linear(x, part) for part in learned["lora_a"].chunk(mixer.experts)]
    if isinstance(mixer, TokenGateMixer):
        gates = token_gates(x, learned["mixer.weight"], mixer.top_k)
    elif isinstance(mixer, TaskGateMixer):
        gates = task_gates(x, learned["mixer.embedding"], learned["mixer.weight"])
    else:
        gates = token_gates(x, learned["mixer.router_a"])
        mixed = sum(gates[..., i, None] * of_one for i, of_one in enumerate(hidden))
        hidden = [mixed] * len(hidden)
        gates = token_gates(x, learned["mixer.router_b"])
    y = layer.base(x)
    for i, part in enumerate(learned["lora_b"].chunk(mixer.experts, 1)):
        y = y + SCALE * gates[..., i, None] * F.linear(hidden[i], part)
    return y


@pytest.mark.parametrize("shape", [(3, IN), (3, 5, IN), (3, 1, IN)])
@pytest.mark.parametrize(
    ("kind", "experts"),
    [
        *itertools.product(("dense", "inside", "task"), (2, 4)),
        *itertools.product(("top-k",), (4, 8)),
    ],
)
def test_all_experts_at_once_are_the_experts_one_by_one(kind, experts, shape):
    layer = layer_of(kind, experts=experts)
    mine = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}
    theirs = {name: weight.detach().clone().requires_grad_() for name, weight in mine.items()}
    x = torch.randn(shape, dtype=torch.float64)
    x_naive = x.clone().requires_grad_()
    x.requires_grad_()
    y = layer(x)
    expected = one_by_one(layer, theirs, x_naive)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    assert (y - layer.base(x)).abs().mean() > 0.1
    weights = torch.randn_like(expected)
    (torch.tanh(y) * weights).sum().backward()
    (torch.tanh(expected) * weights).sum().backward()
    mine["x"] = x
    theirs["x"] = x_naive
    for name, weight in theirs.items():
        assert weight.grad.any()
        torch.testing.assert_close(mine[name].grad, weight.grad, rtol=1e-10, atol=1e-12)


def test_routers_read_x_before_dropout():
    """With 99 % dropped in training, the weight of each expert is still that of evaluation."""
    for kind in ("dense", "top-k", "inside"):
        layer = layer_of(kind)
        dropping = AdapterLinear(layer.base, mixer=layer.mixer, scale=SCALE, dropout=0.99).double()
        nn.init.normal_(dropping.lora_a)  # a new layer holds what the memory held
        seen = []
        hook = layer.mixer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs))
        x = torch.randn(3, 5, IN, dtype=torch.float64)
        dropping.train()(x)
        hook.remove()
        ((h, routed),) = seen
        assert routed.equal(x) and not torch.allclose(h, x @ dropping.lora_a.T)
