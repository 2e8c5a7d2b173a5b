"""The exchange of a model's modules for ours, which compute the same by other kernels."""

from collections.abc import Callable

from torch import nn

PLAIN = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""The models of transformers with the plain formulas, as their classes' names begin."""


def exchange(model: nn.Module, *replacements: Callable[[nn.Module], nn.Module | None]) -> dict[str, nn.Module]:
    """Exchanges modules of ``model``, in place, and returns those that were there, by name: set again in the opposite
    order they undo it.

    Args:
        model: whose modules may be exchanged.
        replacements: each returns ours for a module that it knows, with the same weights under the same names, and
            ``None`` for any other. No two know the same module. Ours is in training mode if that one was.
    """
    before = {}
    for name, module in list(model.named_modules()):
        for replacement in replacements:
            ours = replacement(module)
            if ours is not None:
                before[name] = module
                model.set_submodule(name, ours.train(module.training))
    return before


def is_plain(module: nn.Module, part: str) -> bool:
    """Whether a module is the ``part`` of one of the models in :data:`PLAIN`: "Attention", "MLP" or "RMSNorm"."""
    kind = type(module)
    # A model that brings its own code may use the same names for other formulas.
    if not kind.__module__.startswith("transformers.models."):
        return False
    return kind.__name__ in [model + part for model in PLAIN]
