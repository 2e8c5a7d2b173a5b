"""MoSLoRA: low-rank adapters with a learnable mixer between the factors, ΔW = s · B · M · A (docs/library.md)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moslora.version import __version__ as __version__

__all__ = "adapter_penalty", "adapter_state_dict", "describe_batch", "fold", "inject", "load", "named_adapters", "save"

if TYPE_CHECKING:
    from moslora.adapters import adapter_penalty, adapter_state_dict, describe_batch, fold, inject, named_adapters
    from moslora.evaluation.loading import load
    from moslora.runs.save import save
else:

    def __getattr__(name: str) -> Any:
        """Imports a public name when it is first used: ``moslora --help`` must not wait for torch."""
        if name not in __all__:
            raise AttributeError(f"module 'moslora' has no attribute {name!r}")
        elsewhere = {"load": "moslora.evaluation.loading", "save": "moslora.runs.save"}
        return getattr(import_module(elsewhere.get(name, "moslora.adapters")), name)
