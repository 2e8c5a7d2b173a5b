"""The PiSSA start: what is taken, that it leaves the base once, and that the folded weight is the whole again."""

import pytest
import torch

from moslora.adapters import inject, named_adapters
from moslora.adapters.mixers.learned import DenseMixer
from moslora.adapters.start import LARGE, largest_triplets
from reference import PROJECTIONS, adapted_llama, tiny_llama, token_batch

INVERTIBLE: dict[str, dict[str, object]] = {
    "identity": {"kind": "identity"},
    "hadamard": {"kind": "hadamard", "blocks": 4},
    "kronecker": {"kind": "kronecker", "blocks": 2},
    "dense": {"kind": "dense", "init": "orthogonal"},
    "dense-identity": {"kind": "dense", "init": "identity"},
    "dense-frozen": {"kind": "dense", "init": "orthogonal", "train": "frozen"},
    "dense-folded": {"kind": "dense", "init": "orthogonal", "train": "folded"},
}


def adapted(mixer, **options):
    return adapted_llama(mixer, **{"target_modules": PROJECTIONS, "start": "pissa", **options})


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("case", INVERTIBLE)
def test_the_start_is_the_base_split_into_principal_part_and_residual(case, dora):
    """s · B · M · A is Eckart and Young's best approximation, from an SVD in float64; the model still the base."""
    model = adapted(INVERTIBLE[case], dora=dora)
    base = tiny_llama()
    for name, layer in named_adapters(model):
        weight = base.get_submodule(name).weight.double()
        u, s, v = torch.linalg.svd(weight)
        best = u[:, :4] * s[:4] @ v[:4]
        a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
        m = layer.mixer.matrix().double()
        part = 2.0 * layer.lora_b.double() @ m @ layer.lora_a.double()
        torch.testing.assert_close(2.0 * b.double() @ a.double(), part, rtol=0, atol=2e-6)
        torch.testing.assert_close(part, best, rtol=0, atol=2e-5)
        torch.testing.assert_close(layer.base.weight.double(), weight - part, rtol=0, atol=2e-6)
        torch.testing.assert_close(layer.delta_weight(), torch.zeros_like(layer.base.weight), rtol=0, atol=1e-6)
        if not (isinstance(layer.mixer, DenseMixer) or case == "dense-folded"):
            # Without a draw in between, the singular values are shared evenly.
            torch.testing.assert_close(layer.lora_a.norm(dim=1).double() ** 2 * 2, s[:4], rtol=1e-4, atol=0)
    ids = token_batch(base)
    torch.testing.assert_close(model(ids).logits, base(ids).logits, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("case", INVERTIBLE)
def test_bfloat16_keeps_the_sum_to_the_rounding_of_the_residual(case):
    model = adapted(INVERTIBLE[case], dtype=torch.bfloat16)
    base = tiny_llama(dtype=torch.bfloat16)
    for name, layer in named_adapters(model):
        assert layer.base.weight.dtype == torch.bfloat16 and layer.lora_a.dtype == torch.float32
        weight = base.get_submodule(name).weight.float()
        whole = layer.base.weight.float() + layer.scale * layer.start_b @ layer.start_a
        assert (whole - weight).abs().max() <= 2**-8 * layer.base.weight.float().abs().max()
    ids = token_batch(base)
    exact = tiny_llama()(ids).logits
    error = (model(ids).logits.float() - exact).norm()
    least = (base(ids).logits.float() - exact).norm()
    assert error <= 1.5 * least  # a Kaiming M, inverted, has 1.7 at the least


def test_the_principal_part_of_a_large_weight_is_the_full_decompositions():
    """A spectrum like a trained weight's: a few large values, then i^-0.3, where iterations converge slowly."""
    generator = torch.Generator().manual_seed(0)
    size = LARGE + 32
    rank = 16
    values = torch.arange(1, size + 1) ** -0.3
    values[:3] *= torch.tensor([4.0, 2.0, 1.5])
    u, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    weight = (u * values) @ v.T
    state = torch.get_rng_state()
    found_u, found, found_v = largest_triplets(weight, rank)
    assert torch.get_rng_state().equal(state)
    torch.testing.assert_close(found, values[:rank], rtol=1e-4, atol=0)
    part = (u[:, :rank] * values[:rank]) @ v[:, :rank].T
    assert float(((found_u * found) @ found_v - part).norm() / part.norm()) < 1e-3
    again = largest_triplets(weight, rank)
    assert all(one.equal(other) for one, other in zip(again, (found_u, found, found_v), strict=True))


def test_an_embedding_tied_to_the_output_layer_keeps_its_weight():
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    ids = token_batch(model)
    before = model(ids).logits
    embedding = model.model.embed_tokens.weight.clone()
    inject(model, rank=4, alpha=8, mixer={"kind": "identity"}, target_modules=["lm_head"], start="pissa")
    assert model.model.embed_tokens.weight.equal(embedding)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=2e-5)
