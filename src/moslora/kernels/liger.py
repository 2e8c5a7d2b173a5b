"""The Triton kernels of Liger-Kernel (arXiv 2410.10989) for SwiGLU and RoPE, as operations of torch, a launch each.

They replace the passes of `moslora.kernels.mlp` and `moslora.kernels.rotary` on a GPU, where the extra ``gpu`` is
installed. Its RMSNorm does not replace torch's, which is one launch each way, too.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from moslora.console import note
from moslora.errors import first_line
from moslora.processes.devices import device, gpus

CHANGED = "(Tensor(a!), Tensor(b!))"
torch.library.define("moslora::swiglu", "(Tensor gate, Tensor up) -> Tensor")
torch.library.define("moslora::swiglu_backward", f"(Tensor(a!) gate, Tensor(b!) up, Tensor gradient) -> {CHANGED}")
torch.library.define("moslora::rope", f"(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, bool back) -> {CHANGED}")


@cache
def installed() -> bool:
    """Whether Liger-Kernel is there, and works with this Triton and GPU. It is imported on use: that takes seconds."""
    if not all(map(find_spec, ("triton", "liger_kernel"))):
        return False
    try:
        import_module("liger_kernel.ops.swiglu")
        import_module("liger_kernel.ops.rope")
        if gpus():  # Triton needs a C compiler at its first launch
            x, angles = torch.ones(2, 1, 2, 2, 16, device=device()), torch.ones(1, 2, 16, device=device())
            torch.ops.moslora.swiglu(*x)
            torch.ops.moslora.rope(*x, angles, angles, False)
    except Exception as error:  # of whatever kind: without it everything works
        note(f"Liger-Kernel does not work here, and is not used: {first_line(error)}")
        return False
    return True


def takes(x: Tensor) -> bool:
    """Whether these kernels compute where ``x`` is, and as precisely as its dtype: they know no float64."""
    return x.device.type != "cpu" and x.dtype != torch.float64 and installed()


@torch.library.impl("moslora::swiglu", "default")
def _swiglu(gate: Tensor, up: Tensor) -> Any:
    """silu(g) ∘ u."""
    if gate.is_meta:
        return torch.empty_like(gate)
    return import_module("liger_kernel.ops.swiglu").swiglu_forward(gate.contiguous(), up.contiguous())[2]


@torch.library.impl("moslora::swiglu_backward", "default")
def _swiglu_backward(gate: Tensor, up: Tensor, gradient: Tensor) -> Any:
    """The gradients of g and u, in their places."""
    if gate.is_meta:
        return gate, up
    parts = (x.contiguous() for x in (gate, up, gradient))
    return import_module("liger_kernel.ops.swiglu").swiglu_backward(*parts)


@torch.library.impl("moslora::rope", "default")
def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """q and k, ``(1, T, heads, size)``, turned by their angles or back, in their places."""
    if not q.is_meta:
        turn = getattr(import_module("liger_kernel.ops.rope"), "rope_backward" if back else "rope_forward")
        q, k = (x.transpose(1, 2) for x in turn(q.transpose(1, 2), k.transpose(1, 2), cos, sin)[:2])
    return q, k
