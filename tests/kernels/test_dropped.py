"""Dropout within the adapters' products against the plain formula, if Triton is installed: on a GPU, or by a CPU with
TRITON_INTERPRET=1."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moslora.kernels import liger  # noqa: F401 — its operations
from moslora.kernels.dropout import WITHIN, Dropout, zero_dropped
from moslora.kernels.recompute import mark_recomputable, project

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAN_RUN = find_spec("triton") is not None and (DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CAN_RUN, reason="no Triton, or neither a GPU nor TRITON_INTERPRET=1"),
]
ROUNDING = {torch.float32: 2**-20, torch.float16: 2**-9}
if DEVICE.type == "cuda":
    ROUNDING[torch.bfloat16] = 2**-6  # which the interpreter takes for integers


def drawn(seed: int, p: float) -> Tensor:
    return torch.tensor([seed, p], dtype=torch.float64)


def mask(*shape: int, seed: int, p: float) -> Tensor:
    """As the products' gradient has it."""
    return zero_dropped(torch.ones(shape, dtype=torch.float64, device=DEVICE), drawn(seed, p))


def philox(counters: numpy.ndarray, key: int) -> numpy.ndarray:
    """Philox4x32 with 7 rounds (Salmon, Moraes, Dror and Shaw, SC 2011), the four words of each counter."""
    low = 2**32 - 1
    words = [counters.astype(object), *([0 * counters.astype(object)] * 3)]
    keys = [key, 0]
    for _ in range(7):
        one = words[0] * 0xD2511F53
        two = words[2] * 0xCD9E8D57
        words = [(two >> 32) ^ words[1] ^ keys[0], two & low, (one >> 32) ^ words[3] ^ keys[1], one & low]
        keys = [(keys[0] + 0x9E3779B9) & low, (keys[1] + 0xBB67AE85) & low]
    return numpy.stack(words, -1)


def test_mask_equals_philox():
    """Which are those of Random123's known answers; of a row of 9 entries three counters are used."""
    assert philox(numpy.zeros(1, int), 0)[0].tolist() == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    words = philox(numpy.arange(5 * 3), 99).reshape(5, 12)[:, :9]
    kept = torch.tensor((words / 2**32 >= 0.3).astype(float))
    assert mask(5, 9, seed=99, p=0.3).cpu().equal(kept)


def results(compute: Callable[..., list[Tensor]], leaves: list[Tensor], learn: str) -> list[Tensor]:
    own = [x.to(DEVICE, copy=True).requires_grad_(name in learn) for x, name in zip(leaves, "xa", strict=True)]
    out = compute(*own)
    torch.manual_seed(5)
    weights = [torch.randn(y.shape, dtype=torch.float64).to(leaves[0].dtype).to(y) for y in out]
    return [*out, *torch.autograd.grad(out, [x for x in own if x.requires_grad], weights)]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("rank", "columns"), [(3, 40), (48, 130), (513, 64)])
@pytest.mark.parametrize("learn", ["xa", "a", "x"])
@pytest.mark.parametrize("again", [True, False])
def test_values_and_gradients_are_those_of_the_formula(dtype, rank, columns, learn, again):
    """In float64. x is kept or computed again, and another product reads it, too."""
    torch.manual_seed(3)
    leaves = [(torch.randn(2, 37, columns)).to(dtype), (torch.randn(rank, columns) / columns**0.5).to(dtype)]
    m = mask(2, 37, columns, seed=7, p=0.4)

    def ours(x: Tensor, a: Tensor) -> list[Tensor]:
        read = x.neg()
        if again:
            read = mark_recomputable(read, torch.neg, x)
        return list(project(read, a, drawn(7, 0.4)))

    def plain(x: Tensor, a: Tensor) -> list[Tensor]:
        return [(-x * m) @ a.T, -x]

    if learn == "a":  # then x is handed on as it is
        ours, plain = (lambda x, a, f=f: f(x, a)[:1] for f in (ours, plain))
    found = results(ours, leaves, learn)
    expected = results(plain, [x.double() for x in leaves], learn)
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), other, rtol=4 * ROUNDING[dtype], atol=8 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("rows", "columns", "programs"), [(37, 300, 9), (1, 900, 8), (200, 130, 13), (600, 64, 38)])
def test_columns_are_divided_among_multiprocessors(monkeypatch, dtype, rows, columns, programs):
    """Two programs each for 4 of them, or one for each tile of 16 rows and 128 columns; the sums are those of one."""
    dropped = import_module("moslora.kernels.dropped")
    launches = []

    class Noted:
        def __getitem__(self, grid):
            launches.append(grid)
            return right[grid]

    right = dropped._project
    monkeypatch.setattr(dropped, "_project", Noted())
    monkeypatch.setattr(dropped, "multiprocessors", lambda device: 4)
    torch.manual_seed(4)
    x = torch.randn(rows, columns).to(DEVICE, dtype)
    a = (torch.randn(48, columns) / columns**0.5).to(DEVICE, dtype)
    found = torch.ops.moslora.project(x, a, 7.0, 0.4)
    expected = (x * mask(rows, columns, seed=7, p=0.4)).double() @ a.double().T
    torch.testing.assert_close(found.double(), expected, rtol=4 * ROUNDING[dtype], atol=8 * ROUNDING[dtype])
    assert found.equal(torch.ops.moslora.project(x, a, 7.0, 0.4))
    assert launches[0] == launches[1] and math.prod(launches[0]) == programs


@pytest.mark.parametrize("capability", [80, 86, 90, 120])
def test_compiles_for_other_gpus(capability):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    compiling = [sys.executable, Path(__file__).with_name("compile_dropped.py"), str(capability)]
    ran = subprocess.run(compiling, env=environment, capture_output=True, text=True, check=True)
    kernels = [line.split() for line in ran.stdout.splitlines()]
    assert len(kernels) == 4 and all(int(shared) < 99 * 1024 for *_, shared in kernels)


def test_checkpointing_drops_the_same(monkeypatch):
    """Though its seed is drawn again; the next draw is another."""
    monkeypatch.setattr(Dropout, "kernel", lambda *_: WITHIN)
    dropout = Dropout(0.3)
    x = torch.randn(20, 48, device=DEVICE, requires_grad=True)
    a = torch.randn(4, 48, device=DEVICE, requires_grad=True)
    torch.manual_seed(11)
    first = zero_dropped(torch.ones_like(x), dropout.draw(x))
    assert not first.equal(zero_dropped(torch.ones_like(x), dropout.draw(x)))
    torch.manual_seed(11)
    h, _ = checkpoint(lambda x: project(x, a, dropout.draw(x)), x, use_reentrant=False)
    torch.manual_seed(12)  # what else is drawn until the backward pass
    found = [h, *torch.autograd.grad(h.sin().sum(), [x, a])]
    h = (x * first) @ a.T
    expected = [h, *torch.autograd.grad(h.sin().sum(), [x, a])]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
