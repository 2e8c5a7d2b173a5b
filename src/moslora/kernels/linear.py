"""Products x Wᵀ with a frozen W on a CPU, by oneDNN with the weight packed in the order in which its kernels read it.

They replace ``F.linear`` on a CPU; a GPU uses ``F.linear``. Without packing, every product packs the weight again,
which takes a tenth of its time or more. In float32 torch uses MKL instead, which is half as fast on AMD processors.
Results are bit-identical in bfloat16; in float32 the order of the sums differs.

A processor without AVX-512 (most desktops, AMD's EPYC before Genoa) multiplies neither bfloat16 nor float16, and torch
emulates these products one entry at a time. There a product multiplies float32 copies and rounds once, which is several
times as fast.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from moslora.borrowed import borrowed
from moslora.kernels.plain import disabled_kernels

PACK = "torch.ops.mkldnn._reorder_linear_weight"
MULTIPLY = "torch.ops.mkldnn._linear_pointwise"

PACKED = "oneDNN, packed"
IN_FLOAT32 = "torch, in float32"

CONVERTED_FROM = 32
"""Minimum number of rows of x for which copying the weight to float32 saves time."""

SAMPLED = 64
"""Number of entries of a weight that are compared to detect a change through ``weight.data``, which torch does not
count."""


def own_linear(module: nn.Module) -> nn.Module | None:
    """Return a :class:`FrozenLinear` for a plain linear layer, ``None`` for any other module and for a subclass."""
    if type(module) is nn.Linear:
        return FrozenLinear(module)
    return None


def kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that computes a frozen linear layer."""
    if device.type != "cpu" or "linear" in disabled_kernels():
        return "torch"
    if dtype in (torch.float32, torch.bfloat16) and _multiplies_packed(dtype):
        return PACKED
    if dtype in (torch.bfloat16, torch.float16):
        return IN_FLOAT32
    return "torch"


@cache
def _multiplies_packed(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of ``dtype`` on this processor, found by trying."""
    if borrowed(PACK) is None or borrowed(MULTIPLY) is None:
        return False
    x, weight = torch.ones((2, 2, 8), dtype=dtype, device="cpu")
    try:
        y = borrowed(MULTIPLY)(x, borrowed(PACK)(weight, len(x)), None, "none", [], "")
    except (RuntimeError, TypeError, NotImplementedError):  # no such processor; other arguments; no oneDNN
        return False
    return bool((y == 8).all())


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, packed: Tensor | None = None) -> Tensor:
    """x Wᵀ + b without a graph, shape ``(..., out_features)``.

    ``x`` is ``(..., in_features)``, ``weight`` ``(out_features, in_features)``; ``packed`` is its packed copy, if any.
    """
    by = _kernel_of(x, weight)
    if by == PACKED:
        if packed is None:
            packed = weight
        y: Tensor = borrowed(MULTIPLY)(x, packed, bias, "none", [], "")
        return y
    if by == "torch" or x.numel() < CONVERTED_FROM * x.shape[-1]:
        return F.linear(x, weight, bias)
    if bias is not None:
        bias = bias.float()
    return F.linear(x.float(), weight.float(), bias).to(x.dtype)


def _kernel_of(x: Tensor, weight: Tensor) -> str:
    if x.dtype != weight.dtype:  # torch raises the error
        return "torch"
    return kernel(x.device, x.dtype)


def pack_nothing(model: nn.Module) -> None:
    """Stop ``model`` from keeping packed copies, for weights that are used a few times or are sharded."""
    for layer in packed_layers(model):
        layer.packs = False


class FrozenLinear(nn.Linear):
    """y = x Wᵀ + b, from ``(..., in_features)`` to ``(..., out_features)``.

    A CPU keeps a packed copy of W from the first pass on, until W changes.
    """

    packs = True  # whether packed copies are allowed

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        by = _kernel_of(x, self.weight)
        learns = self.weight.requires_grad or getattr(self.bias, "requires_grad", False)
        if by == "torch" or learns:
            return F.linear(x, self.weight, self.bias)
        packs = self.packs and by == PACKED and not self.weight.is_inference()
        packed = _packed(self.weight) if packs else None
        if not (torch.is_grad_enabled() and x.requires_grad):
            return product(x, self.weight, self.bias, packed=packed)
        y: Tensor = _Product.apply(x, self.weight, packed, self.bias)
        return y


def add_product(base: nn.Module, x: Tensor, u: Tensor, b: Tensor) -> Tensor:
    """base(x) + u Bᵀ, shape ``(..., out_features)``, with ``x (..., in_features)``, ``u (..., r)`` and
    ``b (out_features, r)``. A GPU adds in the kernel of the base's product.

    The base is computed last, because gradient checkpointing recomputes only up to the last saved tensor, which is u.
    """
    if x.device.type == "cpu" or not isinstance(base, FrozenLinear) or base.bias is not None:
        return F.linear(u, b).add_(base(x))
    if "adapters" in disabled_kernels() or not x.dtype == u.dtype == base.weight.dtype:  # autocast may choose another
        return F.linear(u, b).add_(base(x))
    y = u.reshape(-1, u.shape[-1]) @ b.T
    return y.addmm_(x.reshape(-1, x.shape[-1]), base.weight.T).view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """y = x Wᵀ + b; with G its gradient, dx = G W.

    The backward pass uses the unpacked W: a second packed copy would save only 3 % of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, packed: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias, packed=packed).data  # not a view, so that callers may add to it in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return product(gradient, ctx.weight.T), None, None, None


def packed_layers(model: nn.Module) -> list[FrozenLinear]:
    """Layers of ``model`` whose weights a CPU packs in their first pass."""
    return [module for module in model.modules() if isinstance(module, FrozenLinear)]


_copies = WeakTensorKeyDictionary()
"""Weight -> (its version and address, a sample of its entries, the packed copy)."""


def _packed(weight: Tensor) -> Tensor:
    """Packed copy of ``weight (out_features, in_features)``, packed again if the weight has changed."""
    version = borrowed("torch.Tensor._version")
    state = (version and version.__get__(weight), weight.data_ptr())
    entries = weight.detach().reshape(-1)
    sample = entries[:: len(entries) // SAMPLED + 1]
    before, sampled, packed = _copies.get(weight, (None, None, None))
    if before != state or not sample.equal(sampled):
        # The number of tokens is only a hint.
        packed = borrowed(PACK)(weight.detach(), 1024)
        _copies[weight] = state, sample.clone(), packed
    assert packed is not None
    return packed
