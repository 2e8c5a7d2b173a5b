"""The penalty by which a gate on tokens keeps its experts' load even, and when it may be asked for."""

import pytest
import torch

from moslora.adapters import adapter_penalty, describe_batch, named_adapters
from reference import PROJECTIONS, adapted_linear, adapted_llama, token_batch

IN = 10


def trained_layer(*, top_k, balance=0.3):
    """Perturbed, in float64 and in training."""
    return adapted_linear({"kind": "token-gate", "top_k": top_k, "balance": balance}, size=0.7).train()


@pytest.mark.parametrize("top_k", [None, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_balance_penalty_by_hand(top_k, padded):
    """k Σ fᵢ Pᵢ over the chosen places (Switch), Var(P)/Mean(P)² over all (LoRAMoE); padding does not count."""
    layer = trained_layer(top_k=top_k)
    x = torch.randn(2, 6, IN, dtype=torch.float64)
    tokens = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    describe_batch(layer, tokens=tokens if padded else None)
    layer(x)
    weight = layer.mixer.weight.detach().clone().requires_grad_()
    kept = [x[i, j] for i in range(2) for j in range(6) if tokens[i, j] or not padded]
    p = [torch.softmax(weight @ token, 0) for token in kept]
    mean = torch.stack(p).mean(0)
    if top_k is None:
        centre = mean.sum() / 4
        expected = 0.3 * ((mean - centre) ** 2).sum() / 3 / centre**2
    else:
        places = torch.zeros(4, dtype=torch.float64)
        for gates in p:
            for expert in sorted(range(4), key=lambda i: -gates[i].item())[:top_k]:
                places[expert] += 1
        expected = 0.3 * 4 * (places / places.sum() * mean).sum()
    penalty = adapter_penalty(layer)
    torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=0)
    with pytest.raises(RuntimeError, match="describe_batch"):
        adapter_penalty(layer)  # asked once, it is gone
    penalty.backward()
    expected.backward()
    torch.testing.assert_close(layer.mixer.weight.grad, weight.grad, rtol=1e-9, atol=1e-12)
    assert weight.grad.any() and layer.lora_a.grad is None


def test_no_penalty_in_evaluation_nor_without_balance():
    x = torch.randn(2, 6, IN, dtype=torch.float64)
    for layer in (trained_layer(top_k=2).eval(), trained_layer(top_k=2, balance=0.0)):
        layer(x)
        assert adapter_penalty(layer) is None


def test_the_penalty_is_the_mean_over_the_layers():
    mixer = {"kind": "token-gate", "experts": 2, "balance": 1.0}
    model = adapted_llama(mixer, moved=0.3, target_modules=PROJECTIONS).train()
    describe_batch(model)
    model(token_batch(model))
    parts = [layer.mixer.penalty(layer.lora_a, layer.lora_b) for _, layer in named_adapters(model)]
    describe_batch(model)
    model(token_batch(model))
    torch.testing.assert_close(adapter_penalty(model), torch.stack(parts).mean())


def test_a_penalty_that_no_router_could_learn_from_is_refused():
    """Reentrant checkpointing runs the first forward pass without gradients."""
    model = adapted_llama({"kind": "token-gate", "balance": 1.0}).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    describe_batch(model)
    model(token_batch(model))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        adapter_penalty(model)
