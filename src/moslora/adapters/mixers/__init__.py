"""Mixers: every method is ΔW = s · B · M · A, and only M differs."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from moslora.adapters.mixers.base import Mixer
from moslora.adapters.mixers.fixed import ButterflyMixer, HadamardMixer, IdentityMixer, InputSplitMixer
from moslora.adapters.mixers.gates import GateInsideMixer, TaskGateMixer, TokenGateMixer
from moslora.adapters.mixers.learned import DenseMixer, DiagonalMixer, KroneckerMixer
from moslora.mixer_options import Options
from moslora.schema import build_options

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


def read_mixer(values: Mapping[str, Any]) -> Options:
    """Return the options of ``{"kind": name, **options}``, without ``tasks``, which belong to a run.

    Raises:
        ValueError: an unknown kind or option, or a value that is not allowed.
    """
    if not isinstance(values, Mapping) or values.get("kind") not in MIXERS:
        kinds = ", ".join(MIXERS)
        raise ValueError(
            f"mixer = {values!r}: must be a mapping such as {{'kind': 'dense'}}; kind must be one of {kinds}"
        )
    options = {key: value for key, value in values.items() if key != "tasks"}
    return build_options(MIXERS[values["kind"]].options_type, **options)


def build_mixer(
    options: Options,
    *,
    rank: int,
    rank_out: int | None = None,
    in_features: int | None = None,
    tasks: Sequence[str] = (),
) -> Mixer:
    """Build the mixer of ``options``.

    Args:
        options: options of the mixer, from `moslora.mixer_options`; ``kind`` is a key of :data:`MIXERS`.
        rank: columns of M.
        rank_out: rows of M, for a rectangular mixer; ``rank`` if ``None``.
        in_features: number of the layer's inputs, for a router.
        tasks: names of the tasks, for a gate that routes by task.
    """
    mixer = MIXERS[options.kind]
    given: dict[str, Any] = {"rank_out": rank_out, "in_features": in_features, "tasks": tasks}
    taken = signature(mixer).parameters
    return mixer(options, rank=rank, **{name: value for name, value in given.items() if name in taken})
