"""The mixers that route: against experts run one after another, and against what their gates reduce to."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moslora.adapters import AdapterLinear, NotMergeable, build_mixer, describe_batch, fold
from moslora.adapters.mixers.gates import TaskGateMixer, TokenGateMixer
from reference import SequentialExperts, TaskRouter, TokenRouter, adapted_linear, perturb

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


@pytest.mark.parametrize("experts", [2, 4])
def test_experts_without_gates_are_lora(experts: int) -> None:
    """The rank split alone changes nothing: Σᵢ Bᵢ Aᵢ = B A."""
    layer = AdapterLinear(nn.Linear(IN, OUT), mixer=build_mixer(kind="identity", rank=RANK), scale=SCALE).double()
    layer.reset_parameters()
    perturb([layer.lora_a, layer.lora_b], size=1)
    naive = SequentialExperts(layer.base, a=layer.lora_a, b=layer.lora_b, experts=experts, scaling=SCALE)
    x = torch.randn(5, IN, dtype=torch.float64)
    torch.testing.assert_close(layer(x), naive(x), rtol=1e-10, atol=1e-12)


def twin(layer: AdapterLinear, kind: str, *, b_scale: float = 1.0, **options: object) -> Callable[[Tensor], Tensor]:
    """The same factors around another mixer, B scaled."""
    other = AdapterLinear(layer.base, mixer=build_mixer(kind=kind, rank=RANK, **options), scale=SCALE).double()
    other.lora_a.data.copy_(layer.lora_a)
    other.lora_b.data.copy_(layer.lora_b * b_scale)
    return other


def fill(layer: AdapterLinear, value: float) -> None:
    for parameter in layer.mixer.parameters():
        nn.init.constant_(parameter, value)


@pytest.mark.parametrize("experts", [2, 4])
def test_even_gates_are_the_mixer_without_gates(experts: int) -> None:
    """Routers at zero make every gate 1/k: LoRA over k on the diagonal, the butterfly over k² inside LoRA."""
    x = torch.randn(3, 5, IN, dtype=torch.float64)
    inside = layer_of("inside", experts=experts)
    fill(inside, 0)
    braid = twin(inside, "butterfly", blocks=experts, b_scale=experts**-2)
    torch.testing.assert_close(inside(x), braid(x), rtol=1e-10, atol=1e-12)
    for kind in ("dense", "task"):
        layer = layer_of(kind, experts=experts)
        fill(layer, 0)
        torch.testing.assert_close(layer(x), twin(layer, "identity", b_scale=1 / experts)(x), rtol=1e-10, atol=1e-12)


def test_gates_all_at_one_are_the_butterfly(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("inside")
    monkeypatch.setattr(Tensor, "softmax", lambda self, *_, **__: torch.ones_like(self))
    x = torch.randn(3, 5, IN, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(layer, "butterfly", blocks=4)(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "top-k", "inside"])
def test_what_depends_on_the_input_is_no_matrix(kind: str) -> None:
    layer = layer_of(kind)
    for ask in (layer.mixer.matrix, layer.delta_weight, lambda: fold(layer)):
        with pytest.raises(NotMergeable, match="input x"):
            ask()


def residual_of_one_matrix(layer: AdapterLinear) -> float:
    """‖what the best single matrix leaves of the adapter's output‖ / ‖the output‖ over 2,000 tokens of ten features."""
    x = torch.randn(2000, 1, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = (layer(x) - layer.base(x)).flatten(0, 1)
    x = x.flatten(0, 1)
    return ((y - x @ torch.linalg.lstsq(x, y).solution).norm() / y.norm()).item()


def test_a_gate_on_tokens_is_no_linear_map_and_a_gate_on_the_task_is_one() -> None:
    for kind in ("dense", "top-k", "inside"):
        assert residual_of_one_matrix(layer_of(kind, size=2)) > 0.3, kind
    layer = layer_of("task", size=2)
    describe_batch(layer, tasks=torch.tensor([1]))
    assert residual_of_one_matrix(layer) < 1e-10


def test_a_named_task_merges_exactly_and_rows_of_a_batch_keep_their_own() -> None:
    layer = layer_of("task")
    x = torch.randn(3, 5, IN, dtype=torch.float64)
    mixed = layer(x)
    assert not torch.allclose(layer(x.flip(0)).flip(0), mixed)  # the task matters
    for row, task in enumerate(TASKS):
        describe_batch(layer, tasks=torch.tensor([task]))
        merged = layer.base(x) + x @ layer.delta_weight().T
        torch.testing.assert_close(mixed[row], merged[row], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer(x), merged, rtol=1e-10, atol=1e-12)
        gates = torch.softmax(layer.mixer.weight @ layer.mixer.embedding[task], 0)
        m = torch.diag(gates.repeat_interleave(2))
        torch.testing.assert_close(layer.delta_weight(), SCALE * layer.lora_b @ m @ layer.lora_a, rtol=1e-10, atol=0)
        pair = fold(layer)
        torch.testing.assert_close(pair.delta(), layer.delta_weight(), rtol=1e-10, atol=1e-12)


def test_a_task_that_is_not_named_or_not_one_is_refused() -> None:
    layer = layer_of("task")
    with pytest.raises(NotMergeable, match="several tasks was named"):
        layer.delta_weight()
    describe_batch(layer)
    for ask in (
        layer.mixer.matrix,
        layer.delta_weight,
        lambda: fold(layer),
        lambda: layer(torch.zeros(1, IN).double()),
    ):
        with pytest.raises(NotMergeable, match="none was named"):
            ask()


@pytest.mark.parametrize("top_k", [2, 3])
def test_top_k_leaves_k_gates_that_sum_to_one(top_k: int) -> None:
    """M(x)'s diagonal, read off at h = 1; ties included."""
    mixer = build_mixer(kind="token-gate", rank=8, in_features=8, experts=4, top_k=top_k)
    mixer.reset_parameters()
    perturb(mixer.parameters(), size=1)
    x = torch.randn(50, 8)
    x[0] = 0  # all logits alike
    gates = mixer(torch.ones(50, 8), x).view(50, 4, 2)
    assert gates[..., 0].equal(gates[..., 1])
    assert (gates[..., 0] > 0).sum(-1).eq(top_k).all()
    torch.testing.assert_close(gates[..., 0].sum(-1), torch.ones(50))


@pytest.mark.parametrize("top_k", [0, 1, 4, 5])
def test_a_choice_that_is_none_is_refused(top_k: int) -> None:
    """The scaled weight of one expert alone is 1 whatever the router says: its gradient would be zero."""
    with pytest.raises(ValueError, match=f"top_k = {top_k}: "):
        build_mixer(kind="token-gate", rank=8, in_features=8, experts=4, top_k=top_k)


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
