"""How an adapter starts: at random, with the base's principal part (PiSSA), or on its singular vectors (LoRA-XS)."""

import hashlib

import torch
from torch import Tensor, nn

from moslora.adapters.folding import fold_into_a
from moslora.adapters.linear import AdapterLinear
from moslora.adapters.mixers import IdentityMixer

MAX_CONDITION = 10
"""Largest ‖M‖ · ‖M⁻¹‖ for a PiSSA start: it multiplies the rounding of the product, 1/256 in bfloat16."""

LARGE = 1024
"""The smaller side of a weight up to which all its singular values are computed."""

OVERSAMPLING, ITERATIONS = 64, 16
"""Of the subspace iteration: weights of trained models have spectra that fall slowly, which needs both."""


def draw(layer: AdapterLinear, *, name: str, seed: int) -> None:
    """Draws A, B and M.

    Args:
        layer: on the CPU.
        name: of the layer; part of the seed, so that the draw does not depend on the other layers.
        seed: of the run.
    """
    layer.reset_parameters(generator_of(seed, name, "factors"), generator_of(seed, name, "mixer"))


def refuse_stuck(layer: AdapterLinear, *, name: str) -> None:
    """Training must start at the base and be able to leave it: exactly one of B and M starts at zero, M perhaps only
    near it, and that one learns. With G = ∂L/∂ΔW the gradients are Mᵀ Bᵀ G of A, Bᵀ G Aᵀ of M and G Aᵀ Mᵀ of B: at
    first only the one at zero has any.

    Raises:
        ValueError: both are zero, neither is, or the one that is does not learn.
    """
    weights = {"B": [layer.lora_b], "M": list(layer.mixer.parameters())}
    at_zero = {"B": not layer.lora_b.any(), "M": layer.mixer.starts_at_zero()}
    zero = [part for part, so in at_zero.items() if so]
    if len(zero) == 2:
        raise ValueError(f"{name}: B and M both start at zero: a saddle point, where every gradient is zero")
    if not zero:
        raise ValueError(f"{name}: neither B nor M starts at zero, so training would not start at the base")
    if not any(weight.requires_grad for weight in weights[zero[0]]):
        raise ValueError(f"{name}: {zero[0]} starts at zero and does not learn, so no gradient could arrive anywhere")


@torch.no_grad()
def take_singular_vectors(layer: AdapterLinear, weight: Tensor, *, name: str) -> None:
    """A = Σ Vᵀ and B = U over the r largest singular values of W = U Σ Vᵀ, which stays as it is (LoRA-XS, arXiv
    2405.17604; ``utils/initialization_utils.py`` of its released code, which decomposes Wᵀ).

    Args:
        layer: after :func:`draw`; M keeps its values.
        weight: W, shape ``(out_features, in_features)``.
        name: of the layer, for messages.

    Raises:
        ValueError: the weight is smaller than the rank, or A reads only a slice of the input.
    """
    mixer = layer.mixer
    if layer.lora_a.shape[1] != layer.in_features:
        raise ValueError(f"{name}: singular vectors need an A that reads the whole input")
    rank = max(mixer.rank_in, mixer.rank_out)
    _refuse_more_than(weight, rank, name)
    u, s, v = largest_triplets(weight.float(), rank)
    layer.lora_a.copy_((s[:, None] * v)[: mixer.rank_in])
    layer.lora_b.copy_(u[:, : mixer.rank_out])


@torch.no_grad()
def take_principal_part(layer: AdapterLinear, *, name: str) -> None:
    """s · B · M · A = the best rank-r approximation of W (PiSSA, arXiv 2404.02948): with W = U S Vᵀ,

        A = √(S/s) Vᵀ,   B = U √(S/s) M⁻¹,

    over the r largest singular values. W − s · B · M · A stays in the base (:func:`leave_residual`).

    Args:
        layer: after :func:`draw`; M keeps its values.
        name: of the layer, for messages.

    Raises:
        ValueError: M is (almost) singular, or the base is quantised or smaller than the rank.
    """
    rank, weight = layer.mixer.rank_in, _float_weight(layer, name)
    full = (layer.out_features, layer.in_features)
    _refuse_more_than(weight, rank, name)
    if layer.mixer.routes or layer.lora_a.shape != (rank, full[1]) or layer.mixer.rank_out != rank:
        raise ValueError(f"{name}: a PiSSA start needs a square M between full factors")
    m = layer.mixer.matrix().double()
    condition = float(torch.linalg.cond(m))
    if not condition <= MAX_CONDITION:
        raise ValueError(
            f"{name}: a PiSSA start puts the inverse of M into B, and this M is singular or too close to it"
            f" (condition number {condition:.3g}, at most {MAX_CONDITION}); use an M that starts orthogonal"
        )
    u, s, v = largest_triplets(weight.float(), rank)
    root = (s / layer.scale).sqrt()
    layer.lora_a.copy_(root[:, None] * v)
    layer.lora_b.copy_((u * root).double().cpu() @ torch.linalg.inv(m))


def largest_triplets(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular values of a float32 weight W ``(out, in)``, with their vectors.

    A large W, whose full decomposition takes half a minute on a CPU, is met by subspace iteration (Halko et al., arXiv
    0909.4061, algorithm 4.4) with :data:`OVERSAMPLING` more columns than wanted, which leaves ‖W − U S V‖ within 1e-5
    of the best there is, and draws the same numbers whatever was drawn before.

    Returns:
        U ``(out, rank)``, S ``(rank,)`` falling, V ``(rank, in)``.
    """
    if min(weight.shape) <= LARGE:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng([] if weight.is_cpu else [weight.device], device_type=weight.device.type):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, q=min(rank + OVERSAMPLING, *weight.shape), niter=ITERATIONS)
        v = v.T
    return u[:, :rank], s[:rank], v[:rank]


@torch.no_grad()
def remember_start(layer: AdapterLinear, *, name: str) -> None:
    """Stores the current folded factors, which are to be removed from the base.

    Raises:
        ValueError: the base is quantised.
    """
    _float_weight(layer, name)
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


def fold_at_init(layer: AdapterLinear, *, drawn: bool) -> None:
    """Replaces a mixer that exists only for the start by the identity.

    Args:
        layer: its mixer may be replaced.
        drawn: whether M must still be multiplied into A; false if A was read from a file.
    """
    if not layer.mixer.folds_at_init:
        return
    if drawn:
        fold_into_a(layer)
    else:
        layer.mixer = IdentityMixer(rank=layer.mixer.rank_in)


def _refuse_more_than(weight: Tensor, rank: int, name: str) -> None:
    if rank > min(weight.shape):
        raise ValueError(f"{name}: rank {rank} is more than a weight of {weight.shape[0]} × {weight.shape[1]} has")


def _float_weight(layer: AdapterLinear, name: str) -> torch.Tensor:
    weight = getattr(layer.base, "weight", None)
    full = (layer.out_features, layer.in_features)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.shape != full:
        raise ValueError(f"{name}: a PiSSA start is removed from the base's weight, which must not be quantised")
    return weight


def generator_of(seed: int, name: str, part: str) -> torch.Generator:
    """Of the draws of one part, ``factors`` or ``mixer``, of the layer ``name``."""
    digest = hashlib.sha256(f"{seed}/{name}/{part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
