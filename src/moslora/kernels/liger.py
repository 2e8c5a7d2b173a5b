"""Triton kernels as operations of torch, one launch each: Liger-Kernel's (arXiv 2410.10989) for SwiGLU and RoPE, and
those of `moslora.kernels.dropped`.

On a GPU with the extra ``gpu`` they replace the passes of `moslora.kernels.mlp`, `rotary` and `recompute`.
Liger-Kernel's RMSNorm is not used, because torch's also takes one launch in each direction.
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
"""Set if these kernels do not work in some process of the group."""


def is_installed() -> bool:
    """Whether Liger-Kernel and Triton are installed."""
    return find_spec("triton") is not None and find_spec("liger_kernel") is not None


def is_used() -> bool:
    """Whether these kernels are used: they are installed, not disabled, and work in all processes of the group."""
    return "liger" not in disabled_kernels() and not _fails_elsewhere.is_set() and fault() is None


def agree() -> None:
    """Use these kernels in all processes of the group or in none, so that a run computes its steps in one way."""
    if "liger" in disabled_kernels():
        return
    faults = all_gather(fault())
    if all(one == "" for one in faults):
        return
    for rank, one in enumerate(faults):
        if one is not None:
            _fails_elsewhere.set()
            why = one or "it is not installed"
            if rank:
                why = f"rank {rank}: {why}"
            note(f"Liger-Kernel is not used, as it does not work here: {why}")
            return


@cache
def fault() -> str | None:
    """Reason why these kernels do not work in this process; ``None`` if they work, empty if they are not installed.

    The import takes seconds. On a GPU each kernel is launched once, because Triton compiles it at the first launch.

    Raises:
        MosloraError: a kernel has made the GPU unusable for this process.
    """
    if not is_installed():
        return ""
    try:
        import_module("liger_kernel.ops.swiglu")
        import_module("liger_kernel.ops.rope")
        if gpus():
            # Inference mode has no gradients. It is left only if it is on, because leaving it starts autograd's
            # threads.
            with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
                try:
                    _try(device())
                except OSError:  # another process may rename the same file of Triton's cache on a network disk
                    _try(device())
    except Exception as error:  # any: everything works without these kernels
        if gpus():
            _refuse_broken_gpu(error)
        return first_line(error)
    return None


def _try(device: torch.device) -> None:
    """Launch each kernel on ``device`` and compare its results with the plain formulas.

    Raises:
        ValueError: a result differs.
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
    rotated_q = torch.cat([0.6 * first - 0.8 * second, 0.6 * second + 0.8 * first], dim=-1)
    expected = [product.detach(), d_gate, d_up, rotated_q, k.clone()]

    results = [torch.ops.moslora.swiglu(gate, up), *torch.ops.moslora.swiglu_backward(gate, up, ones)]
    q, k = torch.ops.moslora.rope(q, k, cos, sin, False)
    results.append(q.clone())
    _, rotated_back_k = torch.ops.moslora.rope(q, k, cos, sin, True)
    results.append(rotated_back_k)

    x, of_x = (
        torch.arange(2 * 24 * 40, device=device).remainder(5).half().view(2, 24, 40)
    )  # small integers, whose sums are exact
    a, gradient = x[:3], x[:, :3]
    ones = torch.ones_like(x)
    seed_and_p = (1.0, 0.5)
    (mask,) = torch.ops.moslora.project_backward(ones[:, :1], ones[:1], None, torch.zeros_like(x), *seed_and_p)
    dropped = x * mask
    expected += [dropped @ a.T, gradient.T @ dropped, (gradient @ a) * mask + of_x]
    results += [torch.ops.moslora.project(x, a, *seed_and_p)]
    results += torch.ops.moslora.project_backward(gradient, a, x, of_x, *seed_and_p)
    wait_for(device)
    if not all(one.allclose(other, atol=1e-4) for one, other in zip(results, expected, strict=True)):
        raise ValueError("its results differ from those of the plain formulas")


def _refuse_broken_gpu(fault: Exception) -> None:
    """Refuse a GPU on which all later operations fail, as after a kernel's access to a wrong address.

    Raises:
        MosloraError: the GPU is unusable for this process.
    """
    try:
        wait_for(device())
    except RuntimeError:
        raise MosloraError(
            f"Liger-Kernel failed on {device()}, which this process can no longer use: {first_line(fault)};"
            " uninstall liger-kernel"
        ) from None


def supports(x: Tensor) -> bool:
    """Whether these kernels support the device and dtype of ``x``; they have no float64."""
    return x.device.type != "cpu" and x.dtype != torch.float64 and is_used()


# Triton launches on the current device, even if the tensors are on another.


def swiglu(gate: Tensor, up: Tensor) -> Any:
    """silu(g) ∘ u, with the shape of both."""
    if gate.is_meta:
        return torch.empty_like(gate)
    with as_current(gate.device):
        return import_module("liger_kernel.ops.swiglu").swiglu_forward(gate.contiguous(), up.contiguous())[2]


def swiglu_backward(gate: Tensor, up: Tensor, gradient: Tensor) -> Any:
    """Gradients of g and u, written into ``gate`` and ``up``; all three arguments have one shape."""
    if gate.is_meta:
        return gate, up
    gate, up, gradient = (x.contiguous() for x in (gate, up, gradient))
    with as_current(gate.device):
        return import_module("liger_kernel.ops.swiglu").swiglu_backward(gate, up, gradient)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """q and k ``(1, T, heads, size)``, rotated in place by cos and sin ``(1, T, size)``; if ``back``, by the
    inverse rotation, as the backward pass does."""
    if q.is_meta:
        return q, k
    ops = import_module("liger_kernel.ops.rope")
    rotate = ops.rope_backward if back else ops.rope_forward
    with as_current(q.device):
        rotated_q, rotated_k, *_ = rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    return rotated_q.transpose(1, 2), rotated_k.transpose(1, 2)


def project(x: Tensor, a: Tensor, seed: float, p: float) -> Any:
    """(x ∘ m) Aᵀ, shape ``(..., r)``, from ``x (..., in_features)`` and ``a (r, in_features)``.

    The mask m is drawn by ``seed`` and keeps an entry with probability 1 − p.
    """
    h = x.new_empty((*x.shape[:-1], len(a)))
    if not x.is_meta:
        with as_current(x.device):
            import_module("moslora.kernels.dropped").project(x.contiguous(), a.contiguous(), h, seed, p)
    return h


def project_backward(
    gradient: Tensor, a: Tensor, x: Tensor | None, of_x: Tensor | None, seed: float, p: float
) -> list[Tensor]:
    """Gradients of A and x, from ``gradient (..., r)`` and ``a (r, in_features)``.

    Returns:
        The gradient of A, if ``x (..., in_features)`` is given; then, if ``of_x`` is given, the gradient of x plus
        ``of_x``, which has its shape.
    """
    given = [y if y is None else y.contiguous() for y in (gradient, a, x, of_x)]
    d_a = None if x is None else torch.empty_like(a, memory_format=torch.contiguous_format)
    d_x = None if of_x is None else torch.empty_like(of_x, memory_format=torch.contiguous_format)
    if not a.is_meta:
        with as_current(a.device):
            import_module("moslora.kernels.dropped").project_backward(*given, d_a, d_x, seed, p)
    return [one for one in (d_a, d_x) if one is not None]


Dropout.supports = staticmethod(lambda x: supports(x))
for _operation in (swiglu, swiglu_backward, rope, project, project_backward):
    torch.library.impl(f"moslora::{_operation.__name__}", "default", _operation)
