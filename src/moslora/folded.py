"""A loaded model's adapters as plain LoRA pairs, or the reason why there are none."""

from pathlib import Path

from transformers import PreTrainedModel

from moslora.adapters import LoraPair, NotMergeable, TaskGateMixer, fold, named_adapters
from moslora.errors import UsageError
from moslora.model import name_task
from moslora.tasks import resolve_tasks


def lora_pairs(model: PreTrainedModel, *, path: Path, task: str | None = None) -> dict[str, LoraPair]:
    """Every adapter of ``model`` folded, by the name of its layer.

    Args:
        model: with adapters; told of ``task``, so that it computes from now on what the pairs say.
        path: the adapter folder, for messages.
        task: the one that a task gate is fixed to.

    Raises:
        UsageError: a mixer depends on its input, or on a task where none is named; or a task where nothing asks for it.
    """
    layers = dict(named_adapters(model))
    gated = any(isinstance(layer.mixer, TaskGateMixer) for layer in layers.values())
    if task is not None:
        if len(resolve_tasks(task)) > 1:
            raise UsageError(f"--task {task}: name one task; a merged model has one weight for all its inputs")
        if not gated:
            raise UsageError(f"{path}: --task {task}: no gate here depends on the task; leave it out")
        name_task(model, task)
    pairs = {}
    for name, layer in layers.items():
        try:
            pairs[name] = fold(layer)
        except NotMergeable as error:
            mend = "name one with --task" if gated else "keep the adapter folder, which evaluates as it is"
            raise UsageError(f"{path}: cannot become one weight: {name} has {error}; {mend}") from None
    return pairs
