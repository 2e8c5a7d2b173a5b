"""The mixers against their definitions, in float64 and with asymmetric, where possible rectangular, matrices."""

import itertools

import pytest
import torch
from torch import nn

from moslora.adapters import MIXERS, AdapterLinear, build_mixer, fold
from moslora.mixer_options import DenseOptions
from reference import adapted_linear, mixer_of

CASES = {
    "identity": {"kind": "identity", "rank": 6},
    "butterfly": {"kind": "butterfly", "rank": 6, "blocks": 3},
    "butterfly-normalized": {"kind": "butterfly", "rank": 6, "blocks": 3, "normalize": True},
    "hadamard": {"kind": "hadamard", "rank": 8, "blocks": 4},
    "kronecker": {"kind": "kronecker", "rank": 6, "blocks": 3},
    "diagonal": {"kind": "diagonal", "rank": 6},
    "input-split": {"kind": "input-split", "rank": 6, "blocks": 2},
    "dense": {"kind": "dense", "rank": 6},
    "dense-rectangular": {"kind": "dense", "rank": 6, "rank_out": 4},
    "dense-zeros": {"kind": "dense", "rank": 6, "rank_out": 8, "init": "zeros"},
}


def layer_of(case):
    return adapted_linear(CASES[case], size=0.5)


def definition(case, layer):
    """M written out from the mixer's definition alone."""
    rank = layer.mixer.rank_in
    eye = torch.eye(rank, dtype=torch.float64)
    match case:
        case "identity" | "input-split":
            return eye
        case "butterfly" | "butterfly-normalized":
            whole = sum(torch.roll(eye, 2 * shift, 0) for shift in range(3))
            if case == "butterfly-normalized":
                whole = whole / 3
            return whole
        case "hadamard":
            signs = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
            return torch.kron(torch.tensor(signs, dtype=torch.float64), eye[:2, :2]) / 2
        case "kronecker":
            g = layer.mixer.weight.detach()
            m = torch.zeros_like(eye)
            for i, j in itertools.product(range(3), repeat=2):
                m[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = g[i, j] * eye[:2, :2]
            return m
        case "diagonal":
            return torch.diag(layer.mixer.weight.detach())
        case _:
            return layer.mixer.weight.detach()


def whole_a(case, layer):
    """A as a matrix over all input features."""
    a = layer.lora_a.detach()
    if case != "input-split":
        return a
    zeros = torch.zeros(3, 5, dtype=a.dtype)
    return torch.cat([torch.cat([a[:3], zeros], 1), torch.cat([zeros, a[3:]], 1)])


def test_every_static_mixer_is_covered():
    assert {case["kind"] for case in CASES.values()} == {
        kind for kind, mixer in MIXERS.items() if not mixer.options_type.routes
    }


@pytest.mark.parametrize("case", CASES)
def test_matrix_forward_and_delta_agree_with_the_definition(case):
    """And the folded pair has the same ΔW."""
    layer = layer_of(case)
    m = definition(case, layer)
    x = torch.randn(2, 5, 10, dtype=torch.float64)
    delta = 1.7 * layer.lora_b @ m @ whole_a(case, layer)
    torch.testing.assert_close(layer.mixer.matrix().double(), m, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.delta_weight(), delta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x), layer.base(x) + x @ delta.T, rtol=1e-10, atol=1e-12)
    h = torch.randn(3, m.shape[1], dtype=torch.float64)
    torch.testing.assert_close(layer.mixer(h, h), h @ m.T, rtol=1e-10, atol=1e-12)
    pair = fold(layer)
    torch.testing.assert_close(pair.scale * pair.b @ pair.a, delta, rtol=1e-10, atol=1e-12)
    expected_rank = {"butterfly": 2, "butterfly-normalized": 2}.get(case, layer.mixer.rank_out)
    assert pair.a.shape == (expected_rank, 10) and pair.b.shape == (7, expected_rank)


@pytest.mark.parametrize("case", CASES)
def test_only_one_factor_has_a_gradient_at_the_start(case):
    layer = AdapterLinear(nn.Linear(10, 7), mixer=mixer_of(**CASES[case]), scale=1.0)
    layer.reset_parameters()
    assert not layer.delta_weight().any()
    layer(torch.randn(5, 10)).square().sum().backward()
    moved = {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.any()}
    if case in ("dense-zeros", "diagonal"):
        assert moved == {"mixer.weight"}
    else:
        assert moved == {"lora_b"}


def test_gains_of_the_dense_initialisations():
    """E‖Mh‖²/‖h‖² = ‖M‖²_F / rank_in, over 300 draws of 16 × 16."""
    gains = {}
    for init in ("kaiming", "orthogonal", "identity", "xavier", "normal"):
        mixer = build_mixer(DenseOptions(init=init), rank=16)
        generator = torch.Generator().manual_seed(3)
        total = 0.0
        for _ in range(300):
            mixer.reset_parameters(generator)
            total += mixer.matrix().square().sum().item() / 16
        gains[init] = total / 300
    assert gains["kaiming"] == pytest.approx(1 / 3, abs=0.005)
    assert gains["orthogonal"] == pytest.approx(1, abs=1e-5) and gains["identity"] == 1
    assert gains["xavier"] == pytest.approx(1, abs=0.02) and gains["normal"] == pytest.approx(16, abs=0.3)
