"""The mixers: every method is ΔW = s · B · M · A, and only M differs."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from moslora.adapters.mixers.base import Mixer
from moslora.adapters.mixers.fixed import ButterflyMixer, HadamardMixer, IdentityMixer, InputSplitMixer
from moslora.adapters.mixers.gates import GateInsideMixer, TaskGateMixer, TokenGateMixer
from moslora.adapters.mixers.learned import DenseMixer, DiagonalMixer, KroneckerMixer
from moslora.mixer_options import checked_options

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
    *,
    rank: int,
    kind: str,
    rank_out: int | None = None,
    in_features: int | None = None,
    tasks: Sequence[str] = (),
    **options: Any,
) -> Mixer:
    """The mixer ``kind`` of :data:`MIXERS`.

    Args:
        rank: columns of M.
        kind: its name.
        rank_out: rows of M, if they are not as many.
        in_features: of the layer, for a router that reads its input.
        tasks: names, for a gate that routes by the task.
        options: the mixer's own, of `moslora.mixer_options`.

    Raises:
        ValueError: an unknown kind or option, a value that is not allowed, or options that do not go together.
    """
    if kind not in MIXERS:
        raise ValueError(f"mixer kind {kind!r}: must be one of {', '.join(MIXERS)}")
    mixer = MIXERS[kind]
    checked = checked_options(mixer.options_type, options, rank=rank, rank_out=rank_out)
    given: dict[str, Any] = {"rank": rank, "rank_out": rank_out, "in_features": in_features, "tasks": tasks}
    taken = signature(mixer).parameters
    if tasks and "tasks" not in taken:
        raise ValueError(f"tasks = {tasks!r}: a {kind} mixer does not depend on the task; leave them out")
    return mixer(checked, **{name: value for name, value in given.items() if name in taken})
