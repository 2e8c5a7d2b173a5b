"""Linear layers that cannot be adapted, as the model's code does more than call them, such as those of a router."""

from transformers import PretrainedConfig, PreTrainedModel

from moslora.adapters import inject
from moslora.base.check import plain_logits
from moslora.base.engine import text_part
from moslora.base.twin import small_twin
from moslora.errors import UsageError

ALL_LINEAR = "all-linear"
"""What `adapter.target_modules` says for all but the output layer."""


def refuse_misused_layers(config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Refuses ``all-linear`` for the model of ``config`` if one of the layers cannot be adapted: its small twin shows
    it, by a few tokens.

    Raises:
        UsageError: names the layers.
    """
    try:
        if _computes(config, ALL_LINEAR, trust_remote_code=trust_remote_code):
            return
        twin = small_twin(config, trust_remote_code=trust_remote_code)
        plain_logits(twin)
        names = {name.rpartition(".")[2] for name in _adapt(twin, ALL_LINEAR)}
        misused = [name for name in names if not _computes(config, [name], trust_remote_code=trust_remote_code)]
    except Exception:  # of whatever kind: a twin that does not compute by itself shows nothing
        return
    if misused:
        others = ", ".join(sorted(names.difference(misused)))
        raise UsageError(
            f"adapter.target_modules = {ALL_LINEAR}: {type(twin).__name__} does more than call its"
            f" {', '.join(sorted(misused))}, which cannot be adapted; list the others: [{others}]"
        )


def _computes(config: PretrainedConfig, target_modules: list[str] | str, *, trust_remote_code: bool) -> bool:
    """Whether the twin computes with adapters on these layers."""
    twin = small_twin(config, trust_remote_code=trust_remote_code)
    _adapt(twin, target_modules)
    try:
        plain_logits(twin)
    except (AttributeError, TypeError):  # there is no weight; or not a tensor came back
        return False
    return True


def _adapt(twin: PreTrainedModel, target_modules: list[str] | str) -> list[str]:
    """Any adapters; the names of their layers."""
    any_mixer = {"kind": "identity"}
    return inject(twin, rank=1, alpha=1, mixer=any_mixer, target_modules=target_modules, within=text_part(twin))
