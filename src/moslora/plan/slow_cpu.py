"""Warning on a machine without a GPU, before work on a large base: how long a CPU takes for it."""

from collections.abc import Sequence
from contextlib import suppress

from transformers import PreTrainedModel

from moslora.base.shapes import meta_model
from moslora.choices import DType
from moslora.console import note
from moslora.data.steps import default_micro_batch_tokens
from moslora.errors import MosloraError
from moslora.evaluation.request import Request
from moslora.plan.duration import Cost, format_duration, on_this_cpu
from moslora.plan.outline import evaluation, outline
from moslora.process_rank import is_main_process, world_size
from moslora.processes.devices import gpus, say_device
from moslora.recipe import ModelSection, Recipe
from moslora.tasks import Task

LARGE = 10**9
"""Parameters of a base from which on the warning is given."""


def note_training(recipe: Recipe, *, overrides: str) -> None:
    """Note how long the training takes on this CPU. ``overrides`` is the recipe with its overrides as typed."""
    if _is_large_here(recipe.model):
        run = outline(recipe)
        total = run.cost(recipe, processes=1, budget=default_micro_batch_tokens(on_gpu=False))
        gpus_need = f"moslora plan {overrides} --gpu-memory 80GB says what a GPU needs"
        _note("training takes", total, run.model, recipe.model.dtype, gpus_need)


def note_evaluation(section: ModelSection, request: Request, tasks: Sequence[Task]) -> None:
    """Note how long the questions of ``tasks`` take on this CPU, if their number is known."""
    if _is_large_here(section):
        model = meta_model(section)
        questions, total = evaluation(model, section, request, tasks)
        if questions:
            _note(f"{questions:,} questions take", total, model, section.dtype, "--limit asks fewer")


def _note(what: str, total: Cost, model: PreTrainedModel, dtype: DType, fix: str) -> None:
    took = format_duration(on_this_cpu(total, model, dtype) / world_size())
    note(f"no GPU here: {what} about {took} on this CPU, estimated from two matrix products that were timed; {fix}")


def _is_large_here(section: ModelSection) -> bool:
    if gpus() or not is_main_process():
        return False
    say_device("cpu")
    with suppress(MosloraError):  # which the command says where it needs what is missing
        return meta_model(section).num_parameters() >= LARGE
    return False
