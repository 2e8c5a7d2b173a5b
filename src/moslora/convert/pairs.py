"""A model's adapters as plain LoRA pairs, and, before anything is loaded, whether that is possible."""

from transformers import PreTrainedModel

from moslora.adapters import LoraPair, NotMergeable, build_mixer, fold, has_learned, named_adapters
from moslora.base.load import name_task
from moslora.errors import MosloraError, UsageError
from moslora.runs.adapter_folder import AdapterFolder


def refuse_unfoldable(folder: AdapterFolder, task: str | None) -> None:
    """Refuses an adapter without a single ΔW. A task gate has one for each ``task`` that it was trained on."""
    section = folder.recipe.adapter
    gated = section.mixer.kind == "task-gate"
    if task is None:
        try:
            build_mixer(rank=section.rank, in_features=1, **folder.recipe.adapter_options()["mixer"]).matrix()
        except NotMergeable as error:
            fix = "name one with --task" if gated else "evaluate the adapter folder itself"
            raise UsageError(f"{folder.path}: has no single weight: it has {error}; {fix}") from None
    elif not gated:
        raise UsageError(f"{folder.path}: --task {task}: its mixer does not depend on the task; omit --task")
    else:
        folder.refuse_untrained(task)


def lora_pairs(folder: AdapterFolder, model: PreTrainedModel, *, task: str | None) -> dict[str, LoraPair]:
    """The folded adapters of ``folder`` by layer. ``model`` has them, and computes for ``task`` from now on."""
    if not has_learned(model):
        raise MosloraError(f"{folder.path}: still as it started, with ΔW = 0 in every layer; choose a later checkpoint")
    if task is not None:
        name_task(model, task)
    return {name: fold(layer) for name, layer in named_adapters(model)}
