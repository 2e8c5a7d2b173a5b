"""The mixers that route, against experts run one after another."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from moslora.adapters import AdapterLinear, describe_batch
from moslora.adapters.mixers.gates import TaskGateMixer, TokenGateMixer
from reference import SequentialExperts, TaskRouter, TokenRouter, adapted_linear

IN, OUT, RANK, SCALE = 10, 7, 8, 1.7
TASKS = [2, 0, 1]

KINDS = {
    "dense": {"kind": "token-gate"},
    "top-k": {"kind": "token-gate", "top_k": 2},
    "inside": {"kind": "gate-inside"},
    "task": {"kind": "task-gate", "tasks": ["one", "two"], "embedding_size": 5},
}


def layer_of(kind: str, *, experts: int = 4, size: float = 0.7) -> AdapterLinear:
    """A perturbed layer in float64, tasks named."""
    layer = adapted_linear({**KINDS[kind], "experts": experts}, size=size, rank=RANK)
    describe_batch(layer, tasks=torch.tensor(TASKS))
    return layer


def sequential(layer: AdapterLinear) -> SequentialExperts:
    """The same weights as experts of their own, run one after another."""
    mixer = layer.mixer
    inside = None
    router: nn.Module
    if isinstance(mixer, TokenGateMixer):
        router = TokenRouter(mixer.weight, top_k=mixer.top_k)
    elif isinstance(mixer, TaskGateMixer):
        router = TaskRouter(mixer.embedding, mixer.weight, tasks=TASKS)
    else:
        router = TokenRouter(mixer.router_b)
        inside = TokenRouter(mixer.router_a)
    parts = {"a": layer.lora_a, "b": layer.lora_b, "experts": mixer.experts}
    return SequentialExperts(layer.base, **parts, scaling=SCALE, router=router, inside=inside)


def gradients(layer: AdapterLinear) -> list[Tensor]:
    """Gradients of A, B and the mixer's parameters, in the naive module's order."""
    mixer = dict(layer.mixer.named_parameters())
    order = ("router_b", "router_a") if "router_a" in mixer else ("embedding", "weight")
    learned = [mixer[name].grad for name in order if name in mixer]
    return [layer.lora_a.grad, layer.lora_b.grad, *learned]  # type: ignore[list-item]


@pytest.mark.parametrize("shape", [(3, IN), (3, 5, IN), (3, 1, IN)])
@pytest.mark.parametrize(
    ("kind", "experts"),
    [
        *itertools.product(("dense", "inside", "task"), (2, 4)),
        *itertools.product(("top-k",), (4, 8)),
    ],
)
def test_all_experts_at_once_are_the_experts_one_by_one(kind: str, experts: int, shape: tuple[int, ...]) -> None:
    layer = layer_of(kind, experts=experts)
    naive = sequential(layer)
    x = torch.randn(shape, dtype=torch.float64)
    x_naive = x.clone().requires_grad_()
    x.requires_grad_()
    y = layer(x)
    expected = naive(x_naive)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    assert (y - layer.base(x)).abs().mean() > 0.1
    weights = torch.randn_like(expected)
    (torch.tanh(y) * weights).sum().backward()
    (torch.tanh(expected) * weights).sum().backward()
    theirs = [torch.cat([p.grad for p in naive.lora_A]), torch.cat([p.grad for p in naive.lora_B], 1)]
    for router in (naive.router, naive.inside):
        if router is not None:
            theirs += [p.grad for p in router.parameters()]
    for mine, other in zip([x.grad, *gradients(layer)], [x_naive.grad, *theirs], strict=True):
        assert other.any()
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_routers_read_x_before_dropout() -> None:
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
