"""A loaded model's adapters as plain LoRA pairs, or the reason why there are none."""

from pathlib import Path

from transformers import PreTrainedModel

from moslora.adapters import LoraPair, NotMergeable, TaskGateMixer, fold, named_adapters
from moslora.checkpoint import AdapterFolder
from moslora.errors import UsageError
from moslora.model import name_task
from moslora.tasks import TASKS, resolve_tasks


def lora_pairs(model: PreTrainedModel, *, path: Path, task: str | None = None) -> dict[str, LoraPair]:
    """Every adapter of ``model`` folded, by the name of its layer.

    Args:
        model: with adapters; told of ``task``, so that it computes from now on what the pairs say.
        path: the adapter folder, for messages.
        task: the one that a task gate is fixed to, from :func:`fixed_task`.

    Raises:
        UsageError: a mixer depends on its input, or on a task where none is named.
    """
    layers = dict(named_adapters(model))
    gated = any(isinstance(layer.mixer, TaskGateMixer) for layer in layers.values())
    if task is not None:
        name_task(model, task)
    pairs = {}
    for name, layer in layers.items():
        try:
            pairs[name] = fold(layer)
        except NotMergeable as error:
            mend = "name one with --task" if gated else "keep the adapter folder, which evaluates as it is"
            raise UsageError(f"{path}: cannot become one weight: {name} has {error}; {mend}") from None
    return pairs


def fixed_task(folder: AdapterFolder, task: str | None) -> str | None:
    """The task that the adapter is to be fixed to, checked before anything is loaded.

    Args:
        folder: the adapter.
        task: as it was typed; ``None`` for none.

    Raises:
        UsageError: several tasks, one where no gate asks for it, or one that the gate has not been trained on.
    """
    if task is None:
        return None
    names = resolve_tasks(task)
    if len(names) > 1:
        raise UsageError(f"--task {task}: name one task; a merged model has one weight for all its inputs")
    if folder.recipe.adapter.mixer.kind != "task-gate":
        raise UsageError(f"{folder.path}: --task {task}: no gate here depends on the task; leave it out")
    refuse_untrained(folder, names[0])
    return names[0]


def refuse_untrained(folder: AdapterFolder, task: str) -> None:
    """Refuses a task whose embedding in the adapter's gate is still its random draw.

    Raises:
        UsageError: no row of it was trained on.
    """
    trained = folder.trained_tasks()
    if trained is None or task in trained:
        return
    named = ", ".join(name for name in trained if name in TASKS)
    mend = f"name one that it was trained on with --task: {named}" if named else "its rows named no set; train it anew"
    raise UsageError(f"{folder.path}: its gate was never trained on {task}; {mend}")
