"""Puts a module of ours in the place of one of the model's, with the same weights under the same names."""

from collections.abc import Callable, Collection

from torch import nn


def exchange(model: nn.Module, *replacements: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replaces every module for which one of ``replacements`` has another; ``None`` keeps it."""
    for name, module in list(model.named_modules()):
        for replacement in replacements:
            if (own := replacement(module)) is not None:
                model.set_submodule(name, own)


def is_plain(module: nn.Module, names: Collection[str]) -> bool:
    """Whether a module is of one of these classes of transformers; a model's own code may use the same names."""
    kind = type(module)
    return kind.__name__ in names and kind.__module__.startswith("transformers.models.")
