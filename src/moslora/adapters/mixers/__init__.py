"""The mixers: every method here is ΔW = s · B · M · A, and M is the only thing that differs."""

from moslora.adapters.mixers.base import Mixer, NotMergeable
from moslora.adapters.mixers.fixed import ButterflyMixer, HadamardMixer, IdentityMixer, InputSplitMixer
from moslora.adapters.mixers.gates import Gate, GateInsideMixer, TaskGateMixer, TokenGateMixer
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
"""The registry: the name a recipe writes as ``adapter.mixer.kind``, and the class it means."""

__all__ = [
    "MIXERS",
    "ButterflyMixer",
    "DenseMixer",
    "DiagonalMixer",
    "Gate",
    "GateInsideMixer",
    "HadamardMixer",
    "IdentityMixer",
    "InputSplitMixer",
    "KroneckerMixer",
    "Mixer",
    "NotMergeable",
    "TaskGateMixer",
    "TokenGateMixer",
]
