"""Linear layers that cannot be adapted because the model's code does more than call them: a router, for example, whose
weight is read, or which returns a tuple."""

from transformers import PretrainedConfig, PreTrainedModel

from moslora.adapters.injection import ALL_LINEAR, inject
from moslora.base.check import plain_logits
from moslora.base.engine import text_part
from moslora.base.twin import small_twin
from moslora.errors import UsageError


def refuse_misused_layers(config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Refuses ``all-linear`` for the model of ``config`` if one of its linear layers cannot be adapted.

    Its small twin is run on a few tokens: with adapters on all layers, and only if that fails on each by itself.

    Raises:
        UsageError: names the layers.
    """
    try:
        if _runs_with_adapters(config, ALL_LINEAR, trust_remote_code=trust_remote_code):
            return
        twin = small_twin(config, trust_remote_code=trust_remote_code)
        plain_logits(twin)  # raises if the twin fails without adapters, too
        names = {name.rpartition(".")[2] for name in _add_adapters(twin, ALL_LINEAR)}  # as a recipe lists them
        misused = [
            name for name in names if not _runs_with_adapters(config, [name], trust_remote_code=trust_remote_code)
        ]
    except Exception:  # of any type: a twin that cannot be built, or fails by itself, says nothing about its layers
        return
    if misused:
        others = ", ".join(sorted(names.difference(misused)))
        raise UsageError(
            f"adapter.target_modules = {ALL_LINEAR}: {type(twin).__name__} does more than call its"
            f" {', '.join(sorted(misused))}, so these cannot be adapted; list the others: [{others}]"
        )


def _runs_with_adapters(config: PretrainedConfig, target_modules: list[str] | str, *, trust_remote_code: bool) -> bool:
    """Whether a forward pass of the twin succeeds with adapters on these layers."""
    twin = small_twin(config, trust_remote_code=trust_remote_code)
    _add_adapters(twin, target_modules)
    try:
        plain_logits(twin)
    except (AttributeError, TypeError):  # it reads the layer's weight, or the layer returns a tuple
        return False
    return True


def _add_adapters(twin: PreTrainedModel, target_modules: list[str] | str) -> list[str]:
    """Adds the smallest adapters to these layers, and returns the layers' names."""
    mixer = {"kind": "identity"}
    return inject(twin, rank=1, alpha=1, mixer=mixer, target_modules=target_modules, within=text_part(twin))
