"""Low-rank adapters with a mixer. Needs nothing but torch; five lines put them into any model.

>>> from moslora.adapters import inject
>>> inject(model, rank=16, alpha=32, mixer={"kind": "dense"}, target_modules=["q_proj", "v_proj"])
"""

from moslora.adapters.fold import LoraPair, fold, fold_into_a
from moslora.adapters.inject import (
    adapter_state_dict,
    build_mixer,
    inject,
    load_adapter_state_dict,
    named_adapters,
)
from moslora.adapters.linear import AdapterLinear
from moslora.adapters.mixers import MIXERS, ButterflyMixer, DenseMixer, IdentityMixer, Mixer

__all__ = [
    "MIXERS",
    "AdapterLinear",
    "ButterflyMixer",
    "DenseMixer",
    "IdentityMixer",
    "LoraPair",
    "Mixer",
    "adapter_state_dict",
    "build_mixer",
    "fold",
    "fold_into_a",
    "inject",
    "load_adapter_state_dict",
    "named_adapters",
]
