"""The mixers: every method is ΔW = s · B · M · A, and only M differs."""

from inspect import signature
from typing import Any

from moslora.adapters.mixers.base import Mixer
from moslora.adapters.mixers.fixed import ButterflyMixer, HadamardMixer, IdentityMixer, InputSplitMixer
from moslora.adapters.mixers.gates import GateInsideMixer, TaskGateMixer, TokenGateMixer
from moslora.adapters.mixers.learned import DenseMixer, DiagonalMixer, KroneckerMixer

MIXERS: dict[str, type[Mixer]] = {
    "identity": IdentityMixer,
    "butterfly": ButterflyMixer,
    "hadamard": HadamardMixer,
    "kronecker": KroneckerMixer,
    "dense": DenseMixer,
    "diagonal": DiagonalMixer,
    "input-split": InputSplitMixer,
    "token-gate": TokenGateMixer,
    "gate-inside": GateInsideMixer,
    "task-gate": TaskGateMixer,
}
"""``adapter.mixer.kind`` of a recipe → the class."""


def build_mixer(
    *, rank: int, kind: str, rank_out: int | None = None, in_features: int | None = None, **options: Any
) -> Mixer:
    """The mixer ``kind`` of :data:`MIXERS`; ``options`` are its own keyword arguments.

    ``in_features`` of the layer are needed only by a router that reads its input.
    """
    if kind not in MIXERS:
        raise ValueError(f"mixer kind {kind!r}: must be one of {', '.join(MIXERS)}")
    if "in_features" in signature(MIXERS[kind]).parameters:
        options["in_features"] = in_features
    if rank_out not in (None, rank):
        options["rank_out"] = rank_out
    return MIXERS[kind](rank=rank, **options)
