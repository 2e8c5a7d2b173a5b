"""Products with a frozen weight on a CPU, by oneDNN with the weight in the order in which its kernels read it.

From a weight as it lies in a checkpoint every product makes that order anew, which takes a tenth of its time or more.
In float32 torch takes MKL instead, which on processors of AMD is half as fast. In bfloat16 the results are the same to
the bit; in float32 sums are taken in another order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

ON_CPU = (torch.bfloat16, torch.float32)
"""Those that oneDNN has on every CPU."""


def use_packed_weights(model: nn.Module) -> None:
    """Replaces every plain linear layer; weights and their names stay."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, FrozenLinear(module))


def kernel(device: torch.device) -> str:
    """What computes a frozen linear layer."""
    return "oneDNN, packed" if device.type == "cpu" and torch.backends.mkldnn.is_available() else "torch"


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ without a gradient; ``x`` is ``(..., in_features)``, ``weight`` ``(out_features, in_features)``."""
    return _onednn(x, weight) if _fits(x, weight) else x @ weight.T


class FrozenLinear(nn.Linear):
    """y = x Wᵀ + b. A CPU keeps a packed copy of W from the first pass on, as long as W stays as it is.

    Attributes:
        packs: whether it may; not where the weight comes and goes.
    """

    packs = True

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or not _fits(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        packed = _packed(self.weight) if self.packs and not self.weight.is_inference() else self.weight
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _onednn(x, packed, self.bias)
        y: Tensor = _Product.apply(x, self.weight, packed, self.bias)
        return y


class _Product(torch.autograd.Function):
    """With G the gradient of y: dx = G W, with W as it lies: a second packed copy would gain 3 % of a training step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _onednn(x, packed, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _onednn(gradient, ctx.weight.T), None, None, None


def packed_layers(model: nn.Module) -> list[nn.Linear]:
    """Those of which a training step on a CPU makes a copy: all but the output layer, which it computes by
    :func:`product`."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, FrozenLinear)]
    return [layer for name, layer in layers if "." in name]


_copies = WeakTensorKeyDictionary()  # weight: (its version and place, the packed copy)


def _packed(weight: Tensor) -> Tensor:
    state = weight._version, weight.data_ptr()
    before, packed = _copies.get(weight, (None, None))
    if before != state:
        # For any number of tokens: the number given here only hints.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1024)
        _copies[weight] = state, packed
    assert packed is not None
    return packed


def _fits(x: Tensor, weight: Tensor) -> bool:
    return kernel(x.device) != "torch" and x.dtype == weight.dtype and x.dtype in ON_CPU


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
