"""A model's adapters as plain LoRA pairs, and, before anything is loaded, whether that is possible."""

from transformers import PreTrainedModel

from moslora.adapters import MIXERS, LoraPair, NotMergeable, build_mixer, fold, has_learned, named_adapters
from moslora.base.load import name_task
from moslora.errors import MosloraError, UsageError
from moslora.recipe import resolve_tasks
from moslora.runs.adapter_folder import AdapterFolder


def lora_pairs(folder: AdapterFolder, model: PreTrainedModel, *, task: str | None) -> dict[str, LoraPair]:
    """Every adapter of ``model``, that of ``folder``, folded, by layer; from now on the model, too, computes for
    ``task``."""
    if not has_learned(model):
        raise MosloraError(f"{folder.path}: still as it started, with ΔW = 0 in every layer; choose a later checkpoint")
    if task is not None:
        name_task(model, task)
    return {name: fold(layer) for name, layer in named_adapters(model)}


def fixed_task(folder: AdapterFolder, task: str | None) -> str | None:
    """The task that a task gate is fixed to; ``None`` for any other mixer that is a single matrix."""
    section = folder.recipe.adapter
    gated = section.mixer.kind == "task-gate"
    if task is None:
        if MIXERS[section.mixer.kind].routes:
            try:
                mixer = folder.recipe.adapter_options()["mixer"]
                build_mixer(rank=section.rank, in_features=1, **mixer).matrix()
            except NotMergeable as error:
                fix = "name one with --task" if gated else "evaluate the adapter folder itself"
                raise UsageError(f"{folder.path}: has no single weight: it has {error}; {fix}") from None
        return None
    if not gated:
        raise UsageError(f"{folder.path}: --task {task}: its mixer does not depend on the task; omit --task")
    names = [entry.name for entry in resolve_tasks(task, folder.recipe.own_tasks)]
    if len(names) > 1:
        raise UsageError(f"--task {task}: must be one task, since a merged model has one weight for all inputs")
    folder.refuse_untrained(names[0])
    return names[0]
