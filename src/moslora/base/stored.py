"""The names that a model's weights have in its files, where transformers renames them as it loads them."""

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from moslora.errors import UsageError


def stored_names(model: PreTrainedModel) -> dict[str, str]:
    """Name of a weight -> its name in the files, for weights whose names differ, as in multimodal models.

    A weight that the files have in several pieces, such as the experts of a layer, is left out.
    """
    names = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 2:  # experts of a layer, and an image encoder's convolutions
            continue
        stored = [*revert_weight_conversion(model, {name: torch.empty(weight.shape, device="meta")})]
        if len(stored) == 1 and stored != [name]:
            names[name] = stored[0]
    return names


def refuse_stored_together(layers: Iterable[str], stored: Mapping[str, str]) -> None:
    """Refuses adapters of ``layers`` whose weights are pieces of one weight in the files: those cannot be merged.

    ``stored`` is from `stored_names`.

    Raises:
        UsageError: names such a layer.
    """
    keys: set[str] = set()
    for name in layers:
        key = stored.get(f"{name}.weight", f"{name}.weight")
        if key in keys:
            raise UsageError(
                f"adapter.target_modules: {name} is part of {key} in the model's files, which moslora cannot"
                " merge into; leave such layers out"
            )
        keys.add(key)
