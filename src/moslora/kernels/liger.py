"""The Triton kernels of Liger-Kernel (arXiv 2410.10989) for SwiGLU and RoPE, and ours of `moslora.kernels.dropped`, as
operations of torch, a launch each.

On a GPU with the extra ``gpu`` they replace the passes of `moslora.kernels.mlp`, `rotary` and `recompute`. Its RMSNorm
does not replace torch's, which is one launch each way, too.
"""

import threading
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moslora.console import note
from moslora.errors import MosloraError, first_line
from moslora.kernels.dropout import Dropout
from moslora.kernels.plain import disabled_kernels
from moslora.processes.devices import as_current, device, gpus, wait_for
from moslora.processes.group import all_gather

CHANGED = "(Tensor(a!), Tensor(b!))"
torch.library.define("moslora::swiglu", "(Tensor gate, Tensor up) -> Tensor")
torch.library.define("moslora::swiglu_backward", f"(Tensor(a!) gate, Tensor(b!) up, Tensor gradient) -> {CHANGED}")
torch.library.define("moslora::project", "(Tensor x, Tensor a, float seed, float p) -> Tensor")
torch.library.define(
    "moslora::project_backward",
    "(Tensor gradient, Tensor a, Tensor? x, Tensor? of_x, float seed, float p) -> Tensor[]",
)
torch.library.define("moslora::rope", f"(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, bool back) -> {CHANGED}")

_fails_elsewhere = threading.Event()
"""Set once these kernels do not work in another process of the group."""


def there() -> bool:
    """Whether Liger-Kernel and Triton are installed, whether they work or not."""
    return find_spec("triton") is not None and find_spec("liger_kernel") is not None


def installed() -> bool:
    """Whether these kernels are used: Liger-Kernel is there, and works in this process and those of its group."""
    return "liger" not in disabled_kernels() and not _fails_elsewhere.is_set() and fault() is None


def agree() -> None:
    """Has the processes of the group use these kernels if they work in all, and none of them otherwise: the steps of
    one run must not be computed in two ways."""
    if "liger" in disabled_kernels():
        return
    faults = all_gather(fault())
    if all(found == "" for found in faults):
        return
    for rank, found in enumerate(faults):
        if found is not None:
            _fails_elsewhere.set()
            why = found or "it is not installed"
            if rank:
                why = f"rank {rank}: {why}"
            note(f"Liger-Kernel is not used, as it does not work here: {why}")
            return


@cache
def fault() -> str | None:
    """Why these kernels cannot be used in this process; ``None`` if they can, and an empty text without Liger-Kernel.

    It is imported on use: that takes seconds. On a GPU each kernel is launched once, as Triton compiles it then.

    Raises:
        MosloraError: a kernel broke the process's use of its GPU, which nothing can mend.
    """
    if not there():
        return ""
    try:
        import_module("liger_kernel.ops.swiglu")
        import_module("liger_kernel.ops.rope")
        if gpus():
            # Inference mode has no gradients. Leaving it, even where it is off, turns on autograd's threads.
            with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
                try:
                    _try(device())
                except OSError:  # on a network's disk another process may rename the same file of Triton's cache
                    _try(device())
    except Exception as error:  # of whatever kind: without it everything works
        if gpus():
            _refuse_broken_gpu(error)
        return first_line(error)
    return None


def _try(device: torch.device) -> None:
    """Launches each kernel on ``device``, and waits for what it computes, or for its fault.

    Raises:
        ValueError: that is not what the formulas give.
    """
    gate, up, q, k = torch.linspace(-2, 2, 4 * 32, device=device).view(4, 1, 2, 1, 16)
    ones = torch.ones_like(gate)
    cos = 0.6 * ones[:, :, 0]
    sin = 0.8 * ones[:, :, 0]
    with torch.enable_grad():
        gate_leaf, up_leaf = (x.clone().requires_grad_() for x in (gate, up))
        product = F.silu(gate_leaf) * up_leaf
    d_gate, d_up = torch.autograd.grad(product, (gate_leaf, up_leaf), ones)
    first, second = q.chunk(2, dim=-1)
    turned_q = torch.cat([0.6 * first - 0.8 * second, 0.6 * second + 0.8 * first], dim=-1)
    expected = [product.detach(), d_gate, d_up, turned_q, k.clone()]

    found = [torch.ops.moslora.swiglu(gate, up), *torch.ops.moslora.swiglu_backward(gate, up, ones)]
    q, k = torch.ops.moslora.rope(q, k, cos, sin, False)
    found.append(q.clone())
    _, turned_back_k = torch.ops.moslora.rope(q, k, cos, sin, True)
    found.append(turned_back_k)

    x, of_x = torch.arange(2 * 24 * 40, device=device).remainder(5).half().view(2, 24, 40)  # whose sums are exact
    a, gradient = x[:3], x[:, :3]
    ones = torch.ones_like(x)
    how = (1.0, 0.5)
    (mask,) = torch.ops.moslora.project_backward(ones[:, :1], ones[:1], None, torch.zeros_like(x), *how)
    left = x * mask
    expected += [left @ a.T, gradient.T @ left, (gradient @ a) * mask + of_x]
    found += [torch.ops.moslora.project(x, a, *how)]
    found += torch.ops.moslora.project_backward(gradient, a, x, of_x, *how)
    wait_for(device)
    if not all(one.allclose(other, atol=1e-4) for one, other in zip(found, expected, strict=True)):
        raise ValueError("its results differ from those of the plain formulas")


def _refuse_broken_gpu(fault: Exception) -> None:
    """An error in a kernel that has run, as of a wrong address, comes back from everything that follows."""
    try:
        wait_for(device())
    except RuntimeError:
        raise MosloraError(
            f"Liger-Kernel failed on {device()}, which this process cannot use any more: {first_line(fault)};"
            " uninstall liger-kernel"
        ) from None


def takes(x: Tensor) -> bool:
    """Whether these kernels compute where ``x`` is, and as precisely as its dtype: they know no float64."""
    return x.device.type != "cpu" and x.dtype != torch.float64 and installed()


# Triton launches on the current device, wherever the tensors are.


def swiglu(gate: Tensor, up: Tensor) -> Any:
    """silu(g) ∘ u."""
    if gate.is_meta:
        return torch.empty_like(gate)
    with as_current(gate.device):
        return import_module("liger_kernel.ops.swiglu").swiglu_forward(gate.contiguous(), up.contiguous())[2]


def swiglu_backward(gate: Tensor, up: Tensor, gradient: Tensor) -> Any:
    """The gradients of g and u, in their places."""
    if gate.is_meta:
        return gate, up
    gate, up, gradient = (x.contiguous() for x in (gate, up, gradient))
    with as_current(gate.device):
        return import_module("liger_kernel.ops.swiglu").swiglu_backward(gate, up, gradient)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """q and k, ``(1, T, heads, size)``, turned by their angles or back, in their places."""
    if q.is_meta:
        return q, k
    ops = import_module("liger_kernel.ops.rope")
    turn = ops.rope_backward if back else ops.rope_forward
    with as_current(q.device):
        turned_q, turned_k, *_ = turn(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    return turned_q.transpose(1, 2), turned_k.transpose(1, 2)


def project(x: Tensor, a: Tensor, seed: float, p: float) -> Any:
    """(x ∘ m) Aᵀ, with the mask m of a seed, which keeps an entry with probability 1 − p."""
    h = x.new_empty((*x.shape[:-1], len(a)))
    if not x.is_meta:
        with as_current(x.device):
            import_module("moslora.kernels.dropped").project(x.contiguous(), a.contiguous(), h, seed, p)
    return h


def project_backward(
    gradient: Tensor, a: Tensor, x: Tensor | None, of_x: Tensor | None, seed: float, p: float
) -> list[Tensor]:
    """The gradient of A, where ``x`` is given, and that of x with ``of_x`` added, where that is."""
    given = [y if y is None else y.contiguous() for y in (gradient, a, x, of_x)]
    d_a = None if x is None else torch.empty_like(a, memory_format=torch.contiguous_format)
    d_x = None if of_x is None else torch.empty_like(of_x, memory_format=torch.contiguous_format)
    if not a.is_meta:
        with as_current(a.device):
            import_module("moslora.kernels.dropped").project_backward(*given, d_a, d_x, seed, p)
    return [found for found in (d_a, d_x) if found is not None]


Dropout.takes = staticmethod(lambda x: takes(x))
for _operation in (swiglu, swiglu_backward, rope, project, project_backward):
    torch.library.impl(f"moslora::{_operation.__name__}", "default", _operation)
