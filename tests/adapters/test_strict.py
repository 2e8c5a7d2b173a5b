"""Nothing is dropped in silence: every part of every method learns, is kept and is asked for, whatever the base."""

import copy
import itertools

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from pydantic import ValidationError
from torch import nn

from moslora.adapters import MIXERS, adapter_penalty, adapter_state_dict, describe_batch, inject, named_adapters
from moslora.recipe import ModelSection, Recipe
from reference import perturb

KINDS: dict[str, dict[str, object]] = {
    **{kind: {"kind": kind} for kind in MIXERS},
    "butterfly-normalized": {"kind": "butterfly", "normalize": True},
    "dense-orthogonal": {"kind": "dense", "init": "orthogonal"},
    "dense-frozen": {"kind": "dense", "init": "orthogonal", "train": "frozen"},
    "dense-folded": {"kind": "dense", "init": "orthogonal", "train": "folded"},
    "flora": {"kind": "dense", "init": "zeros"},
    "dense-near-zero": {"kind": "dense", "init": "near-zero"},
    "token-gate": {"kind": "token-gate", "balance": 0.1},
    "top-k": {"kind": "token-gate", "top_k": 2, "balance": 0.1},
    "task-gate": {"kind": "task-gate", "tasks": ["one"], "embedding_size": 5},
}
PARTS: dict[str, dict[str, object]] = {
    "plain": {},
    "rslora": {"scaling": "rslora"},
    "dora": {"dora": True},
    "pissa": {"start": "pissa"},
    "pissa-dora": {"start": "pissa", "dora": True},
    "svd": {"start": "svd"},
    "b-alone": {"trains": "b"},
    "b-alone-pissa-dora": {"trains": "b", "start": "pissa", "dora": True},
    "m-alone": {"trains": "mixer"},
    "m-alone-svd": {"trains": "mixer", "start": "svd"},
    "m-alone-svd-dora": {"trains": "mixer", "start": "svd", "dora": True},
}


def goes_together(kind, part):
    """By the recipe's rules, which docs/methods.md shows and tests/recipe/test_conflicts.py tests."""
    mixer = {key: value for key, value in KINDS[kind].items() if key != "tasks"}
    try:
        Recipe(name="any", model=ModelSection(name="any"), adapter={"mixer": mixer, **PARTS[part]})
    except ValidationError:
        return False
    return True


CASES = [(kind, part) for kind, part in itertools.product(KINDS, PARTS) if goes_together(kind, part)]
SHAPES = [(64,), (1, 64), (3, 64), (1, 1, 64), (2, 3, 4, 64)]


def float_net(dtype):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64, bias=False), nn.Tanh(), nn.Linear(64, 32)).to(dtype)

    return build


def packed_net(bits):
    """bitsandbytes' own layers, quantised on the CPU from the float network."""
    net = float_net(torch.float32)()
    for i in (0, 2):
        plain = net[i]
        size = (plain.in_features, plain.out_features, plain.bias is not None)
        if bits == 4:
            layer = bnb.nn.Linear4bit(*size, compute_dtype=torch.float32, quant_type="nf4")
        else:
            layer = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
        layer.load_state_dict(plain.state_dict())
        # On a CPU with AVX512-BF16, an evaluation would repack a 4-bit weight into a form without a gradient, for good.
        layer.support_avx512bf16_for_cpu = False
        net[i] = layer.to("cpu")
    return net


def dequantised(layer):
    if isinstance(layer, bnb.nn.Linear4bit):
        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if isinstance(layer, bnb.nn.Linear8bitLt):
        scale = layer.state.SCB
        if scale is None:
            scale = layer.weight.SCB
        return layer.weight.data * (scale / 127)[:, None]
    return layer.weight


def adapt(net, kind, part, state=None):
    options = {"rank": 8, "alpha": 8, "target_modules": ["0", "2"], "state": state, "weight_of": dequantised}
    inject(net, mixer=KINDS[kind], **options, **PARTS[part])
    describe_batch(net, tasks=torch.tensor([0, 1, 1]))
    return net


def learned_parts(net):
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


WEIGHTS = {
    **dict.fromkeys(("identity", "butterfly", "butterfly-normalized", "hadamard", "input-split"), 0),
    **dict.fromkeys(("dense-frozen", "dense-folded"), 0),
    **dict.fromkeys(("gate-inside", "task-gate"), 2),
}
"""How many weights of a mixer learn, if not one."""


def learned_of_a_layer(kind, part):
    """How many parameters learn."""
    count = int("dora" in part)
    if "b-alone" in part:
        return count + 1
    count += WEIGHTS.get(kind, 1)
    if "m-alone" in part:
        return count
    return count + 2


def check(build, kind, part, dtype):
    """Gradients, what is saved, what is read again, and what a missing key says."""
    net = adapt(build(), kind, part).train()
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    perturb(learned_parts(net).values(), size=0.1)
    y = net(x)
    assert y.dtype == dtype
    loss = y.float().square().mean()
    penalty = adapter_penalty(net)
    assert (penalty is not None) == (kind in {"token-gate", "top-k", "diagonal"})
    loss.backward()  # without the penalty: the loss alone has to reach every part
    assert len(learned_parts(net)) == 2 * learned_of_a_layer(kind, part)
    for name, parameter in learned_parts(net).items():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    for _, layer in named_adapters(net):
        assert all(p.grad is None for p in layer.base.parameters())

    state = {key: value.clone() for key, value in adapter_state_dict(net).items()}
    assert learned_parts(net).keys() <= state.keys()
    again = adapt(build(), kind, part, state)
    assert adapter_state_dict(again).keys() == state.keys()
    assert all(value.equal(state[key]) for key, value in adapter_state_dict(again).items())
    assert again.eval()(x).equal(net.eval()(x))
    assert copy.deepcopy(net)(x).equal(net(x))
    for key in state:
        with pytest.raises(ValueError, match=rf"{key}: missing"):
            adapt(build(), kind, part, {other: value for other, value in state.items() if other != key})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "part"), CASES)
def test_every_part_learns_is_saved_and_is_required(kind, part, dtype):
    check(float_net(dtype), kind, part, dtype)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, part in CASES if "pissa" not in part])
def test_every_part_over_a_quantised_base(kind, part, bits):
    check(lambda: packed_net(bits), kind, part, torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_pissa_refuses_a_quantised_base(bits):
    state = adapter_state_dict(adapt(float_net(torch.float32)(), "dense-orthogonal", "pissa"))
    for given in (None, state):
        with pytest.raises(ValueError, match="needs the base's weight, which is quantised here"):
            adapt(packed_net(bits), "dense-orthogonal", "pissa", given)


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 1e-5), (8, 2e-2)])
def test_dora_over_a_quantised_base_is_dora_of_its_float_weight(bits, tolerance):
    """8-bit layers also round what they multiply, a hundredth of the largest entry."""
    net = adapt(packed_net(bits), "dense", "dora")
    plain = float_net(torch.float32)()
    for i in (0, 2):
        plain[i].weight.data.copy_(dequantised(net[i].base))
    plain = adapt(plain, "dense", "dora")
    for model in (net, plain):
        perturb(learned_parts(model).values(), size=0.1)
    x = torch.randn(20, 64)
    assert ((net(x) - plain(x)).norm() / plain(x).norm()).item() < tolerance


@pytest.mark.parametrize(
    ("kind", "shape"),
    [case for case in itertools.product(KINDS, SHAPES) if case != ("task-gate", (64,))],  # tasks are of rows
)
def test_any_shape_of_input(kind, shape):
    """Row by row the same values as in one flat batch, in training as in evaluation."""
    net = adapt(float_net(torch.float32)(), kind, "plain")
    perturb(learned_parts(net).values(), size=0.3)
    describe_batch(net, tasks=torch.tensor([1]))
    x = torch.randn(shape)
    y = net(x)
    assert y.shape == (*shape[:-1], 32)
    torch.testing.assert_close(y.reshape(-1, 32), net(x.reshape(-1, 64)), rtol=1e-5, atol=1e-5)
    assert net.train()(x).equal(net.eval()(x))  # without dropout


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_bfloat16_over_float32_weights(kind):
    net = adapt(float_net(torch.float32)(), kind, "plain").train()
    perturb(learned_parts(net).values(), size=0.1)
    x = torch.randn(3, 5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), net(x), rtol=0, atol=0.1)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in learned_parts(net).values())
