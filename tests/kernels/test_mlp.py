"""The lean MLP against those of transformers that it takes the place of."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moslora.adapters import inject
from moslora.kernels.exchange import exchange
from moslora.kernels.mlp import GatedMLP, own_mlp

SHAPES = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SHAPES |= {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", [["down_proj"], ["up_proj", "gate_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_values_and_gradients_equal_transformers(kind, targets, checkpointing):
    """In float64, with perturbed adapters."""
    results = []
    for lean in (True, False):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **SHAPES)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        if checkpointing and lean:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lean:
            exchange(model, own_mlp)
            assert sum(isinstance(module, GatedMLP) for module in model.modules()) == 2
        inject(model.requires_grad_(False), rank=2, alpha=4, mixer={"kind": "dense"}, target_modules=targets)
        trained = [p for p in model.parameters() if p.requires_grad]
        for weight in trained:
            torch.nn.init.normal_(weight, std=0.3)
        out = model.train()(torch.arange(8).view(2, 4)).logits
        results.append([out, *torch.autograd.grad(out.square().sum(), trained)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    layers = (torch.nn.Linear(4, 6), torch.nn.Linear(4, 6), torch.nn.Linear(6, 4))
    mlp = GatedMLP(*layers).double()
    assert torch.autograd.gradcheck(mlp, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_another_activation_stays():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", hidden_act="gelu", **SHAPES))
    exchange(model, own_mlp)
    assert "LlamaMLP" in {type(module).__name__ for module in model.modules()}
