"""Liger's kernels against the plain formula, if it is installed: on a GPU, or by a CPU with TRITON_INTERPRET=1."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moslora.kernels import liger
from moslora.kernels.mlp import GatedMLP
from moslora.kernels.recompute import project
from moslora.kernels.rotary import RotaryEmbedding
from tests.kernels.test_rotary import parts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAN_RUN = liger.is_used() and (DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")
REASON = "no Liger-Kernel, or neither a GPU nor TRITON_INTERPRET=1"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CAN_RUN, reason=REASON)]
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-10}
if DEVICE.type == "cuda":
    ROUNDING[torch.bfloat16] = 2**-7  # which the interpreter takes for integers


@pytest.fixture(autouse=True)
def on_any_device(monkeypatch):
    """Interpreted on a CPU, which is given numbers as Python's where a GPU has float32."""
    monkeypatch.setattr(liger, "supports", lambda x: x.dtype != torch.float64)
    if DEVICE.type == "cpu":
        from triton import language
        from triton.runtime import interpreter

        given = interpreter._implicit_cvt

        def converted(x: object) -> object:
            if not isinstance(x, float):
                return given(x)
            one = interpreter.TensorHandle(torch.tensor([x]).numpy(), language.float32)
            return language.tensor(one, language.float32)

        monkeypatch.setattr(interpreter, "_implicit_cvt", converted)


def same(compute: Callable[..., list[Tensor]], leaves: list[Tensor], rounding: float) -> None:
    """Values and gradients in this dtype, against float64, which the plain formula computes."""
    results = []
    for dtype in (leaves[0].dtype, torch.float64):
        own = [x.to(DEVICE, dtype, copy=True).requires_grad_() for x in leaves]
        out = compute(*own)
        results.append([*out, *torch.autograd.grad(sum((x * x.detach().cos()).sum() for x in out), own)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=4 * rounding, atol=4 * rounding)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rope_equals_the_formula(dtype):
    """In place: q and k are made first, as layers make them."""
    q, k, cos, sin = parts(dtype)
    same(lambda q, k: [*RotaryEmbedding.apply(q * 1, k * 1, cos.to(q), sin.to(q))], [q, k], ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
def test_swiglu_equals_the_formula(dtype):
    """With an adapter's input that is computed again before its parts are overwritten."""
    torch.manual_seed(1)
    weights = [torch.randn(shape, dtype=torch.float64) / 4 for shape in ((24, 16), (24, 16), (16, 24))]

    def compute(x: Tensor, a: Tensor) -> list[Tensor]:
        layers = [nn.Linear(*w.shape[::-1], bias=False).to(x) for w in weights]
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.data = weight.to(x)
        read: list[Tensor] = []
        layers[2].register_forward_pre_hook(lambda _, inputs: read.append(project(inputs[0], a, None)[0]))
        return [GatedMLP(*layers)(x), *read]

    leaves = [torch.randn(2, 5, 16), torch.randn(3, 24) / 8]
    same(compute, [leaf.to(dtype) for leaf in leaves], ROUNDING[dtype])


def test_second_backward_pass_is_refused():
    gate, up = (torch.randn(3, 8, device=DEVICE, requires_grad=True) for _ in range(2))
    mlp = GatedMLP(nn.Identity(), nn.Identity(), nn.Identity())
    mlp.gate_proj.forward, mlp.up_proj.forward = (lambda _: gate * 1), (lambda _: up * 1)
    out = mlp(gate).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        out.backward()


@pytest.mark.parametrize("works", [True, False])
def test_kernels_are_tried_before_use(works, monkeypatch):
    monkeypatch.setattr(liger, "gpus", lambda: 1)
    monkeypatch.setattr(liger, "wait_for", lambda device: None)

    def device():
        if not works:
            raise RuntimeError("Failed to find C compiler")
        return DEVICE

    monkeypatch.setattr(liger, "device", device)
    monkeypatch.setattr(liger, "_refuse_broken_gpu", lambda fault: None)
    assert liger.fault.__wrapped__() == (None if works else "Failed to find C compiler")
