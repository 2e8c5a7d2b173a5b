"""Puts a module of ours in the place of one of the model's, with the same weights under the same names."""

from collections.abc import Callable

from torch import nn

PLAIN = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Models of transformers with the plain formulas; a model's own code may use their names."""


def exchange(model: nn.Module, *replacements: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replaces every module for which one of ``replacements`` has another; ``None`` keeps it."""
    for name, module in list(model.named_modules()):
        for replacement in replacements:
            own = replacement(module)
            if own is not None:
                model.set_submodule(name, own)


def is_plain(module: nn.Module, part: str) -> bool:
    """Whether a module is such a ``part`` of one of the models in :data:`PLAIN`."""
    kind = type(module)
    if not kind.__module__.startswith("transformers.models."):
        return False
    return kind.__name__ in [model + part for model in PLAIN]
