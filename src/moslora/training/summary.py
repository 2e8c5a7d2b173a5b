"""What a run is, in the lines that it begins with."""

from transformers import PreTrainedModel

from moslora.adapters import named_adapters
from moslora.data.steps import StepPlan
from moslora.recipe import Recipe, TrainingSection
from moslora.training.optimizer import mixer_learns


def describe(recipe: Recipe, model: PreTrainedModel, *, adapted: list[str], plan: StepPlan) -> list[str]:
    """What the run is, in a few lines; works on the meta device too."""
    # Not numel(): a packed weight has fewer entries than the layer has parameters.
    trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    settings = recipe.training
    rates, notes = _rates(settings, learned=mixer_learns(model))
    return [
        f"{recipe.model.name} in {recipe.model.precision}, {len(adapted)} layers adapted: {recipe.adapter.summary()}",
        f"{trainable:,} trainable parameters of {total:,} ({trainable / total:.3%})",
        f"{len(plan):,} steps of {settings.global_batch_size} rows, learning rate {rates},"
        f" {settings.schedule} after {settings.warmup_steps}"
        " warm-up steps",
        *notes,
        *_beyond(recipe, model, steps=len(plan)),
    ]


def _rates(settings: TrainingSection, *, learned: bool) -> tuple[str, list[str]]:
    """The learning rates in words, and notes on what was set for a mixer in which nothing is ``learned``."""
    parts = [f"B × {settings.lora_plus_ratio:g}"] if settings.lora_plus_ratio != 1 else []
    if settings.mixer_learning_rate is not None and learned:
        parts.append(f"mixer {settings.mixer_learning_rate:g}")
    own = {"mixer_learning_rate": settings.mixer_learning_rate, "mixer_weight_decay": settings.mixer_weight_decay}
    notes = [
        f"note: training.{field} = {value:g} has no effect: nothing of this mixer is learned"
        for field, value in own.items()
        if value and not learned
    ]
    return f"{settings.learning_rate:g}" + (f" ({', '.join(parts)})" if parts else ""), notes


def _beyond(recipe: Recipe, model: PreTrainedModel, *, steps: int) -> list[str]:
    """Notes on numbers that are larger than what they are a part of."""
    notes = []
    if (warmup := recipe.training.warmup_steps) >= steps:
        notes.append(f"note: training.warmup_steps = {warmup:,} of {steps:,} steps: the learning rate only rises")
    width, name = min((min(layer.in_features, layer.out_features), name) for name, layer in named_adapters(model))
    if (rank := recipe.adapter.rank) > width:
        notes.append(f"note: adapter.rank = {rank:,} is more than the rank of any ΔW of {name}, at most {width:,}")
    return notes
