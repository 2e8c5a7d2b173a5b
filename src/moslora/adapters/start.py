"""How an adapter starts: at random, with the base's principal part (PiSSA), or on its singular vectors (LoRA-XS)."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moslora.adapter_options import Start
from moslora.adapters.linear import AdapterLinear

LARGE = 1024
"""The smaller side of a weight up to which all its singular values are computed."""

OVERSAMPLING = 64
"""Columns of the subspace iteration beyond those wanted: the spectra of trained weights fall slowly."""

ITERATIONS = 16
"""Steps of the subspace iteration, for the same reason."""


def initialize(
    layer: AdapterLinear, start: Start, *, seed: int, name: str, weight_of: Callable[[nn.Module], Tensor]
) -> None:
    """Draw A, B and M of the layer ``name`` on the CPU, and take from the base what ``start`` says."""
    layer.reset_parameters(generator_of(seed, name, "factors"), generator_of(seed, name, "mixer"))
    if start == "svd":
        _take_singular_vectors(layer, weight_of(layer.base))
    if start == "pissa":
        _take_principal_part(layer)


@torch.no_grad()
def _take_singular_vectors(layer: AdapterLinear, weight: Tensor) -> None:
    """A = Σ Vᵀ and B = U over the r largest singular values of W = U Σ Vᵀ, which stays as it is (LoRA-XS, arXiv
    2405.17604; ``utils/initialization_utils.py`` of its released code, which decomposes Wᵀ).

    ``weight`` is W, shape ``(out_features, in_features)``. ``layer`` is drawn; M keeps its values.
    """
    rank_in = layer.mixer.rank_in
    rank_out = layer.mixer.rank_out
    u, s, v = largest_triplets(weight.float(), max(rank_in, rank_out))
    layer.lora_a.copy_((s[:, None] * v)[:rank_in])
    layer.lora_b.copy_(u[:, :rank_out])


@torch.no_grad()
def _take_principal_part(layer: AdapterLinear) -> None:
    """s · B · M · A = the best rank-r approximation of W (PiSSA, arXiv 2404.02948): with W = U S Vᵀ,

        A = √(S/s) Vᵀ,   B = U √(S/s) M⁻¹,

    over the r largest singular values. W − s · B · M · A stays in the base (:func:`leave_residual`). ``layer`` is
    drawn; M, which is square, keeps its values.
    """
    u, s, v = largest_triplets(float_weight(layer.base).float(), layer.mixer.rank_in)
    m = layer.mixer.matrix().double()
    root = (s / layer.scale).sqrt()
    layer.lora_a.copy_(root[:, None] * v)
    layer.lora_b.copy_((u * root).double().cpu() @ torch.linalg.inv(m))


def largest_triplets(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular values of a float32 weight W ``(out, in)``, with their vectors.

    A large W, whose full decomposition takes half a minute on a CPU, is decomposed by subspace iteration (Halko et al.,
    arXiv 0909.4061, algorithm 4.4) with :data:`OVERSAMPLING` more columns than wanted, which leaves ‖W − U S V‖ within
    1e-5 of the best there is, and draws the same numbers whatever was drawn before.

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
    """Stores the current folded factors, which are to be removed from the base."""
    float_weight(layer.base)  # a quantised base cannot lose them
    a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
    layer.register_buffer("start_a", a.detach().clone())
    layer.register_buffer("start_b", b.detach().clone())


@torch.no_grad()
def leave_residual(layer: AdapterLinear) -> None:
    """W ← W − s · start_b · start_a, in float32 and cast once.

    The base gets a new tensor, because another module may share the old one (a tied embedding).
    """
    weight = layer.base.weight
    assert isinstance(weight, nn.Parameter) and layer.start_a is not None and layer.start_b is not None
    part = layer.scale * (layer.start_b @ layer.start_a)
    residual = (weight.float() - part.to(weight.device)).to(weight.dtype)
    layer.base.weight = nn.Parameter(residual, requires_grad=False)


def float_weight(base: nn.Module) -> Tensor:
    """The weight of a layer, which must not be quantised."""
    weight = base.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise ValueError("the start or DoRA needs the base's weight, which is quantised here; pass weight_of")
    return weight


def generator_of(seed: int, name: str, part: str) -> torch.Generator:
    """The generator for one part, ``factors`` or ``mixer``, of the layer ``name``, whose draw depends on no other."""
    digest = hashlib.sha256(f"{seed}/{name}/{part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
