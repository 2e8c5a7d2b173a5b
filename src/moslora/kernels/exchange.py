"""Exchange of a model's modules for modules of moslora, which compute the same by other kernels."""

from collections.abc import Callable

from torch import nn

PLAIN = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Prefixes of the class names of transformers' models that use the plain formulas."""


def exchange(model: nn.Module, *replacements: Callable[[nn.Module], nn.Module | None]) -> dict[str, nn.Module]:
    """Exchange modules of ``model`` in place and return the original modules by name.

    Setting the originals in the opposite order undoes the exchange. A replacement is in training mode if the original
    is.

    Args:
        model: any model.
        replacements: each returns the replacement of a module, with the same weights under the same names, or ``None``
            to leave the module. At most one of them replaces a given module.
    """
    originals = {}
    for name, module in list(model.named_modules()):
        for replacement in replacements:
            ours = replacement(module)
            if ours is not None:
                originals[name] = module
                model.set_submodule(name, ours.train(module.training))
    return originals


def is_plain(module: nn.Module, part: str) -> bool:
    """Whether a module is the ``part`` ("Attention", "MLP" or "RMSNorm") of a model in :data:`PLAIN`."""
    kind = type(module)
    # A model that brings its own code may use the same names for other formulas.
    if not kind.__module__.startswith("transformers.models."):
        return False
    return kind.__name__ in [model + part for model in PLAIN]
