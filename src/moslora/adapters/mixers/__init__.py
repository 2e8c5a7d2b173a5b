"""The mixers: every method is ΔW = s · B · M · A, and only M differs."""

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
