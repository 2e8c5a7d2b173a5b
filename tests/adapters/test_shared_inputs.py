"""Factors made for all layers at once, and products of layers that read the same x, against each layer by itself."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from moslora.adapters import (
    MIXERS,
    AdapterLinear,
    SharedInputLayers,
    adapter_penalty,
    build_mixer,
    describe_batch,
    named_adapters,
)
from moslora.kernels.dropout import Dropout
from moslora.mixer_options import DenseOptions
from reference import PROJECTIONS, adapted_llama, perturb, token_batch

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((kind, {}, {}) for kind in MIXERS if kind != "task-gate"),
    ("task-gate", {"tasks": ["one"]}, {}),
    ("dense", {}, {"rank_out": 6}),
    ("dense", {}, {"trains": "b"}),
    ("dense", {"init": "near-zero"}, {"trains": "mixer"}),
    ("dense", {}, {"dora": True}),
    ("butterfly", {"normalize": True}, {"scaling": "rslora"}),
    ("token-gate", {"top_k": 2, "balance": 0.1}, {}),
    ("dense", {}, {"target_modules": ["q_proj", "v_proj", "gate_proj", "o_proj"]}),
    ("dense", {}, {"target_modules": r".*layers\.0\..*k_proj|.*layers\.1\..*[kv]_proj"}),
]


def gradients(model, ids, *, at_once, checkpointing=False):
    """The logits, and the gradients of all that learns."""
    model = copy.deepcopy(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    describe_batch(model, tasks=torch.tensor([0, 1, 1]))

    def run():
        logits = model(ids).logits
        loss = logits.square().mean()
        penalty = adapter_penalty(model)
        if penalty is not None:
            loss = loss + penalty
        loss.backward()
        return logits.detach()

    if at_once:
        with SharedInputLayers(model).folded(torch.float64):
            assert all(layer in layer.context.factors for _, layer in named_adapters(model))
            logits = run()
    else:
        logits = run()
    assert not any(layer.context.factors for _, layer in named_adapters(model))
    learned = [p for p in model.parameters() if p.requires_grad]
    assert learned and all(p.grad is not None and p.grad.any() for p in learned)
    return [logits, *(p.grad for p in learned)]


@pytest.mark.parametrize(("kind", "mixer", "options"), CASES)
def test_folded_layers_equal_single_layers(kind, mixer, options):
    """In float64; with gradient checkpointing, which comes to the layers again in the backward pass, too."""
    settings = {"rank": 8, "alpha": 8, "target_modules": PROJECTIONS} | options
    model = adapted_llama({"kind": kind, **mixer}, **settings).double()
    perturb((p for p in model.parameters() if p.requires_grad), size=0.2)
    perturb((b for name, b in model.named_buffers() if ".mixer." in name), size=0.2)  # each layer's own
    ids = token_batch(model)
    expected = gradients(model, ids, at_once=False)
    for checkpointing in (False, True):
        found = gradients(model, ids, at_once=True, checkpointing=checkpointing)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kernel", ["by places", "by mask"])
def test_layers_with_the_same_input_share_dropout(kernel, monkeypatch):
    """y = W x + s B M A x̃ with one draw x̃ for q, k and v, and another where v is given another x; gradients by
    autograd through this."""
    monkeypatch.setattr(Dropout, "kernel", lambda *_: kernel)
    torch.manual_seed(0)
    layers = {
        name: AdapterLinear(nn.Linear(8, size), mixer=build_mixer(DenseOptions(), rank=4), scale=1.7, dropout=0.4)
        for name, size in (("q_proj", 6), ("k_proj", 5), ("v_proj", 6))
    }
    model = nn.ModuleDict(layers).double()
    learned = [p for p in model.parameters() if p.requires_grad]
    for weight in learned:
        nn.init.normal_(weight)
    x, other = (torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.manual_seed(1)
    dropout = Dropout(0.4)
    dropped = [dropout(x, dropout.draw(x)), dropout(other, dropout.draw(other))]

    def of(layer, x, after):
        return layer.base(x) + after @ layer.delta_weight().T

    expected = [of(layer, x, dropped[0]) for layer in layers.values()] + [of(layers["v_proj"], other, dropped[1])]
    torch.manual_seed(1)
    with SharedInputLayers(model).folded(torch.float64):
        found = [layer(x) for layer in layers.values()] + [layers["v_proj"](other)]
    results = []
    for outputs in (found, expected):
        loss = sum(y.sin().sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [x, other, *learned])])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    assert 0 < dropped[0].count_nonzero() < x.numel()
