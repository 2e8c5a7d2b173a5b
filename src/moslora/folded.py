"""A loaded model's adapters as plain LoRA pairs, or, before anything is loaded, the reason why there are none."""

from transformers import PreTrainedModel

from moslora.adapters import MIXERS, LoraPair, NotMergeable, build_mixer, fold, named_adapters
from moslora.checkpoint import AdapterFolder
from moslora.errors import UsageError
from moslora.model import name_task
from moslora.tasks import TASKS, resolve_tasks


def lora_pairs(model: PreTrainedModel, *, task: str | None) -> dict[str, LoraPair]:
    """Every adapter of ``model`` folded, by the name of its layer.

    Args:
        model: with adapters; told of ``task``, so that it computes from now on what the pairs say.
        task: the one that a task gate is fixed to, from :func:`fixed_task`, which has refused what has no pairs.
    """
    if task is not None:
        name_task(model, task)
    return {name: fold(layer) for name, layer in named_adapters(model)}


def fixed_task(folder: AdapterFolder, task: str | None) -> str | None:
    """The task that the adapter is to be fixed to, checked before anything is loaded.

    Args:
        folder: the adapter.
        task: as it was typed; ``None`` for none.

    Raises:
        UsageError: several tasks, one where no gate asks for it, or one that the gate has not been trained on; none,
            where the mixer depends on it; or the mixer depends on its input.
    """
    if task is None:
        _refuse_gate(folder)
        return None
    names = resolve_tasks(task)
    if len(names) > 1:
        raise UsageError(f"--task {task}: name one task; a merged model has one weight for all its inputs")
    if folder.recipe.adapter.mixer.kind != "task-gate":
        raise UsageError(f"{folder.path}: --task {task}: no gate here depends on the task; leave it out")
    refuse_untrained(folder, names[0])
    return names[0]


def _refuse_gate(folder: AdapterFolder) -> None:
    """Refuses a mixer that is no one matrix as long as no task is named."""
    section = folder.recipe.adapter
    if not MIXERS[section.mixer.kind].routes:
        return
    try:
        build_mixer(rank=section.rank, in_features=1, **section.mixer.model_dump()).matrix()
    except NotMergeable as error:
        gated = section.mixer.kind == "task-gate"
        mend = "name one with --task" if gated else "keep the adapter folder, which evaluates as it is"
        raise UsageError(f"{folder.path}: cannot become one weight: it has {error}; {mend}") from None


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
