"""Low-rank adapters with a mixer for any torch model. They know neither recipes nor transformers."""

from moslora.adapters.context import Context
from moslora.adapters.folding import LoraPair, fold
from moslora.adapters.injection import (
    adapter_penalty,
    adapter_state_dict,
    context_of,
    describe_batch,
    describe_task,
    has_learned,
    inject,
    layers_of,
    named_adapters,
    shares_beginnings,
    task_names,
)
from moslora.adapters.linear import AdapterLinear
from moslora.adapters.magnitude import Magnitude
from moslora.adapters.mixers import MIXERS, build_mixer
from moslora.adapters.mixers.base import Mixer, NotMergeable
from moslora.adapters.shared_inputs import SharedInputLayers

__all__ = ["MIXERS", "AdapterLinear", "Context", "LoraPair", "Magnitude", "Mixer", "NotMergeable", "SharedInputLayers"]
__all__ += [
    "adapter_penalty",
    "adapter_state_dict",
    "build_mixer",
    "context_of",
    "describe_batch",
    "describe_task",
    "fold",
    "has_learned",
]
__all__ += ["inject", "layers_of", "named_adapters", "shares_beginnings", "task_names"]
