"""Whole training trajectories against stock PEFT, the released layer, and LoRA of half the rank."""

import peft
import peft.optimizers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moslora.adapters import AdapterLinear, build_mixer, inject, named_adapters
from moslora.kernels.dropout import Dropout
from moslora.mixer_options import DenseOptions
from moslora.recipe import TrainingSection
from moslora.training.optimizer import build_optimizer
from reference import PROJECTIONS, OfficialLayer, adapted_llama, perturb, tiny_llama, token_batch

STEPS = 10


def train(model, parameters, loss):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def stock_twin(ours, theirs, **config):
    """Stock PEFT around ``theirs``, and the pairs of parameters that mean the same, ours and theirs."""
    names = [name for name, _ in named_adapters(ours)]
    options = {"r": 4, "lora_alpha": 8, "target_modules": names, **config}
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**options))
    pairs = []
    for name, layer in named_adapters(ours):
        module = theirs.base_model.model.get_submodule(name)
        pairs += [(layer.lora_a, module.lora_A["default"].weight), (layer.lora_b, module.lora_B["default"].weight)]
        if layer.magnitude is not None:
            pairs.append((layer.magnitude.weight, module.lora_magnitude_vector["default"].weight))
    return theirs, pairs


def perturb_alike(pairs):
    perturb((mine for mine, _ in pairs), size=0.2)
    for mine, other in pairs:
        other.data.copy_(mine.data)


def language_loss(model, ids):
    return lambda: F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


VARIANTS = {
    "lora": ({}, {}),
    "rslora": ({"scaling": "rslora", "alpha": 4}, {"use_rslora": True, "lora_alpha": 4}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "pissa": ({"start": "pissa"}, {"init_lora_weights": "pissa"}),
    "lora-fa": ({"trains": "b"}, {}),
    "pissa-dora-rslora": (
        {"start": "pissa", "dora": True, "scaling": "rslora", "alpha": 4},
        {"init_lora_weights": "pissa", "use_dora": True, "use_rslora": True, "lora_alpha": 4},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_identity_is_stock_peft(variant):
    """Start, forward, gradients and ten AdamW steps, float32, dropout 0; LoRA-FA's frozen A keeps its bits."""
    mine_is, theirs_is = VARIANTS[variant]
    ours = adapted_llama({"kind": "identity"}, target_modules=PROJECTIONS, **mine_is)
    theirs, pairs = stock_twin(ours, tiny_llama(), **theirs_is)
    for name, layer in named_adapters(ours):
        module = theirs.base_model.model.get_submodule(name)
        torch.testing.assert_close(layer.base.weight, module.base_layer.weight, rtol=1e-5, atol=1e-6)
        if "pissa" in variant:  # a singular vector's sign is free
            a = module.lora_A["default"].weight
            b = module.lora_B["default"].weight
            sign = (layer.lora_a * a).sum(1).sign()
            torch.testing.assert_close(layer.lora_a, sign[:, None] * a, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.lora_b, b * sign, rtol=1e-4, atol=1e-5)
        if layer.magnitude is not None:
            stock = module.lora_magnitude_vector["default"].weight
            torch.testing.assert_close(layer.magnitude.weight, stock, rtol=1e-5, atol=1e-6)
    ids = token_batch(ours)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=2e-5)
    perturb_alike(pairs)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(ours(ids).logits, tiny_llama()(ids).logits, atol=0.1)
    language_loss(ours, ids)().backward()
    language_loss(theirs, ids)().backward()
    learned = [pair for pair in pairs if pair[0].requires_grad]
    assert len(learned) == len(pairs) // (1 + (variant == "lora-fa"))
    for mine, other in learned:
        assert mine.grad.any()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
    start = [mine.detach().clone() for mine, _ in pairs]
    losses = train(ours, [mine for mine, _ in learned], language_loss(ours, ids))
    expected = train(theirs, [other for _, other in learned], language_loss(theirs, ids))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0] - 0.1
    for (mine, other), first in zip(pairs, start, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=5e-5)
        moved = (mine - first).abs().max().item()
        assert moved > 1e-2 if mine.requires_grad else moved == 0


def test_a_rate_of_its_own_for_b_is_stock_peft_lora_plus():
    ours = adapted_llama({"kind": "identity"}, target_modules=PROJECTIONS)
    theirs, pairs = stock_twin(ours, tiny_llama())
    perturb_alike(pairs)
    rates = TrainingSection(learning_rate=2e-3, lora_plus_ratio=8, weight_decay=0.1, betas=(0.9, 0.99))
    mine = build_optimizer(ours, rates)
    options = {"lr": 2e-3, "loraplus_lr_ratio": 8, "loraplus_weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}
    stock = peft.optimizers.create_loraplus_optimizer(theirs, torch.optim.AdamW, **options)
    ids = token_batch(ours)
    start = [mine.detach().clone() for mine, _ in pairs]
    for model, optimizer in ((ours, mine), (theirs, stock)):
        for _ in range(STEPS):
            optimizer.zero_grad()
            language_loss(model, ids)().backward()
            optimizer.step()
    for (a_or_b, other), first in zip(pairs, start, strict=True):
        torch.testing.assert_close(a_or_b, other, rtol=1e-5, atol=5e-5)
        assert (a_or_b - first).abs().max() > 1e-2
    (a, _), (b, _) = pairs[:2]
    assert (b - start[1]).abs().mean() > 4 * (a - start[0]).abs().mean()


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5))


def test_dora_with_bias_and_dropout_in_training_is_stock_peft(monkeypatch):
    """Both draw one mask a layer from the global generator: the same after the same seed, if drawn as torch does."""

    def draw(self, x):
        if not self.training:
            return None
        return torch.empty_like(x).bernoulli_(0.7).bool()

    monkeypatch.setattr(Dropout, "draw", draw)
    ours = two_layers()
    theirs = two_layers()
    mixer = {"kind": "identity"}
    inject(ours, rank=4, alpha=8, mixer=mixer, target_modules=["0", "2"], dora=True, dropout=0.3)
    theirs, pairs = stock_twin(ours, theirs, use_dora=True, lora_dropout=0.3)
    perturb_alike(pairs)
    x = torch.randn(20, 12)
    outputs = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(4)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours(x), outputs[0])  # another mask
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_dense_is_the_released_layer():
    """A network of two adapted layers, float64: outputs, gradients and ten AdamW steps."""
    torch.manual_seed(0)
    bases = [nn.Linear(12, 9).double(), nn.Linear(9, 5).double()]
    mine = [AdapterLinear(base, mixer=build_mixer(DenseOptions(), rank=4), scale=2.0).double() for base in bases]
    for layer in mine:
        layer.reset_parameters()
        perturb([layer.lora_a, layer.lora_b, layer.mixer.weight], size=0.3)
    official = []
    for layer in mine:
        factors = {"a": layer.lora_a, "m": layer.mixer.weight, "b": layer.lora_b}
        official.append(OfficialLayer(layer.base, **factors, scaling=2.0))
    x = torch.randn(20, 12).double()
    y = torch.randn(20, 5).double()

    def loss(layers):
        return lambda: (layers[1](torch.tanh(layers[0](x))) - y).square().mean()

    ours = []
    theirs = []
    for layer, other in zip(mine, official, strict=True):
        ours += [layer.lora_a, layer.mixer.weight, layer.lora_b]
        theirs += [other.lora_A.weight, other.lora_AB.weight, other.lora_B.weight]
    loss(mine)().backward()
    loss(official)().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    expected = train(nn.ModuleList(official), theirs, loss(official))
    assert train(nn.ModuleList(mine), ours, loss(mine)) == pytest.approx(expected, rel=1e-10)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_m_alone_between_singular_vectors_is_the_released_lora_xs_layer():
    """MohammadrezaBanaei/LoRA-XS: Wᵀ = U' S V'ᵀ, lora_A.weight = (U' S)ᵀ and lora_B.weight = V', both frozen, around
    a learned r × r linear layer (``forward_latent``). Start, then ten AdamW steps in float64."""
    model = two_layers()
    mixer = {"kind": "dense", "init": "near-zero"}
    inject(model, rank=4, alpha=8, mixer=mixer, target_modules=["0", "2"], start="svd", trains="mixer")
    mine = [layer for _, layer in named_adapters(model.double())]
    official = []
    for layer in mine:
        u, s, vh = torch.linalg.svd(layer.base.weight.detach().T, full_matrices=False)
        encoder = (u @ torch.diag(s))[:, :4]
        decoder = vh[:4]
        sign = (decoder.T * layer.lora_b).sum(0).sign()  # that of a pair of vectors is free
        torch.testing.assert_close(layer.lora_a, (encoder * sign).T, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.lora_b, decoder.T * sign, rtol=0, atol=1e-5)
        assert 0 < layer.mixer.weight.abs().max() < 1e-4
        factors = {"a": layer.lora_a.detach(), "m": layer.mixer.weight.detach(), "b": layer.lora_b.detach()}
        official.append(OfficialLayer(layer.base, **factors, scaling=8 / 4))
    x = torch.randn(20, 12).double()
    y = torch.randn(20, 5).double()
    learned = [layer.mixer.weight for layer in mine]
    assert [p for p in model.parameters() if p.requires_grad] == learned
    frozen = []
    for layer in mine:
        frozen += [layer.lora_a, layer.lora_b, layer.base.weight]
    before = [p.detach().clone() for p in frozen]
    expected = train(
        nn.ModuleList(official),
        [layer.lora_AB.weight for layer in official],
        lambda: (official[1](torch.tanh(official[0](x))) - y).square().mean(),
    )
    assert train(model, learned, lambda: (model(x) - y).square().mean()) == pytest.approx(expected, rel=1e-10)
    assert expected[-1] < expected[0] - 0.01
    for layer, other in zip(mine, official, strict=True):
        torch.testing.assert_close(layer.mixer.weight, other.lora_AB.weight, rtol=1e-10, atol=1e-12)
        delta = 2 * other.lora_B.weight @ other.lora_AB.weight @ other.lora_A.weight
        torch.testing.assert_close(layer.delta_weight(), delta, rtol=1e-10, atol=1e-12)
    assert all(now.equal(then) for now, then in zip(frozen, before, strict=True))
