"""Starts of an adapter: at random, with the base's principal part (PiSSA), or from its singular vectors (LoRA-XS)."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moslora.adapter_options import Start
from moslora.adapters.linear import AdapterLinear

LARGE = 1024
"""Largest smaller side of a weight for which all singular values are computed."""

OVERSAMPLING = 64
"""Number of extra columns of the subspace iteration, because the spectra of trained weights fall slowly."""

ITERATIONS = 16
"""Number of steps of the subspace iteration, for the same reason as :data:`OVERSAMPLING`."""


def initialize(
    layer: AdapterLinear, start: Start, *, seed: int, name: str, weight_of: Callable[[nn.Module], Tensor]
) -> None:
    """Draw A, B and M of the layer ``name`` on the CPU, and set A and B from the base's weight if ``start`` does so."""
    layer.reset_parameters(generator_of(seed, name, "factors"), generator_of(seed, name, "mixer"))
    if start == "svd":
        _take_singular_vectors(layer, weight_of(layer.base))
    if start == "pissa":
        _take_principal_part(layer)


@torch.no_grad()
def _take_singular_vectors(layer: AdapterLinear, weight: Tensor) -> None:
    """Set A = Σ Vᵀ and B = U from the r largest singular values of W = U Σ Vᵀ (LoRA-XS, arXiv 2405.17604).

    The released code decomposes Wᵀ (``utils/initialization_utils.py``). ``weight`` is W, shape ``(out_features,
    in_features)``, and does not change; neither does M.
    """
    rank_in = layer.mixer.rank_in
    rank_out = layer.mixer.rank_out
    u, s, v = largest_triplets(weight.float(), max(rank_in, rank_out))
    layer.lora_a.copy_((s[:, None] * v)[:rank_in])
    layer.lora_b.copy_(u[:, :rank_out])


@torch.no_grad()
def _take_principal_part(layer: AdapterLinear) -> None:
    """Set A and B so that s · B · M · A is the best rank-r approximation of W (PiSSA, arXiv 2404.02948): W = U S Vᵀ,

        A = √(S/s) Vᵀ,   B = U √(S/s) M⁻¹,

    for the r largest singular values. :func:`leave_residual` then leaves W − s · B · M · A in the base. M is square and
    does not change.
    """
    u, s, v = largest_triplets(float_weight(layer.base).float(), layer.mixer.rank_in)
    m = layer.mixer.matrix().double()
    root = (s / layer.scale).sqrt()
    layer.lora_a.copy_(root[:, None] * v)
    layer.lora_b.copy_((u * root).double().cpu() @ torch.linalg.inv(m))


def largest_triplets(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Largest ``rank`` singular values of a float32 weight W ``(out, in)``, with their vectors.

    A large W, whose full decomposition would take half a minute on a CPU, is decomposed by subspace iteration (Halko et
    al., arXiv 0909.4061, algorithm 4.4), for which ‖W − U S V‖ is within 1e-5 of the optimum. Its random numbers do not
    depend on earlier draws.

    Returns:
        U ``(out, rank)``, S ``(rank,)`` falling, V ``(rank, in)``.
    """
    if rank > min(weight.shape):
        raise ValueError(f"rank {rank} exceeds the sides of a {weight.shape[0]} × {weight.shape[1]} weight")
    if min(weight.shape) <= LARGE:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
    else:
        own_generators = [] if weight.is_cpu else [weight.device]  # beside the CPU's
        with torch.random.fork_rng(own_generators, device_type=weight.device.type):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, q=min(rank + OVERSAMPLING, *weight.shape), niter=ITERATIONS)
        v = v.T
    return u[:, :rank], s[:rank], v[:rank]


@torch.no_grad()
def remember_start(layer: AdapterLinear) -> None:
    """Store the current folded factors, which :func:`leave_residual` removes from the base."""
    float_weight(layer.base)  # refuses a quantised base, from which they cannot be removed
    a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
    layer.register_buffer("start_a", a.detach().clone())
    layer.register_buffer("start_b", b.detach().clone())


@torch.no_grad()
def leave_residual(layer: AdapterLinear) -> None:
    """Replace the base's W by W − s · start_b · start_a, computed in float32 and cast once.

    The base gets a new tensor, because another module may share the old one (a tied embedding).
    """
    weight = layer.base.weight
    assert isinstance(weight, nn.Parameter) and layer.start_a is not None and layer.start_b is not None
    part = layer.scale * (layer.start_b @ layer.start_a)
    residual = (weight.float() - part.to(weight.device)).to(weight.dtype)
    layer.base.weight = nn.Parameter(residual, requires_grad=False)


def float_weight(base: nn.Module) -> Tensor:
    """Weight of a layer, ``(out_features, in_features)``.

    Raises:
        ValueError: the weight is quantised.
    """
    weight = base.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise ValueError("the start or DoRA needs the base's weight, which is quantised here; pass weight_of")
    return weight


def generator_of(seed: int, name: str, part: str) -> torch.Generator:
    """Generator of one part (``factors`` or ``mixer``) of the layer ``name``, independent of all other draws."""
    digest = hashlib.sha256(f"{seed}/{name}/{part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
