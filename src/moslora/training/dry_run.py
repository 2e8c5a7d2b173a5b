"""Describes a run in a few lines, without weights, data or network."""

from transformers import PreTrainedModel

from moslora.adapters import named_adapters
from moslora.base.shapes import meta_model
from moslora.data.select import refuse_all_set_aside
from moslora.data.sources import row_counts
from moslora.data.steps import StepPlan
from moslora.recipe import AdapterSection, ModelSection, Recipe, TrainingSection
from moslora.training.budget import rank_budget
from moslora.training.optimizer import mixer_learns
from moslora.training.prepare import adapt, step_plan

TOKENS_PER_ROW = {"llm-adapters": 132, "label": 105, "cloze": 60, "cloze-passage": 75, "chat": 140}
"""Mean tokens of a row over the eight sets with LLaMA-3's tokenizer, for an estimate."""


def dry_run(recipe: Recipe) -> list[str]:
    """The run, counted on the meta device and from the task table; token counts are estimates.

    Raises:
        UsageError: no layer matches, no training row is left, or the steps or a rank budget do not fit.
    """
    data, training = recipe.data, recipe.training
    model = meta_model(recipe.model)
    adapt(model, recipe.adapter_options(), seed=recipe.seed)
    counts = row_counts(recipe.training_tasks, source=data.source, winogrande=data.winogrande)
    if data.rows is not None:
        caps = data.rows if isinstance(data.rows, dict) else dict.fromkeys(counts, data.rows)
        counts = {task: min(count, caps.get(task, count)) for task, count in counts.items()}
    refuse_all_set_aside(sum(counts.values()), validation_rows=data.validation_rows)
    rows = sum(counts.values()) - data.validation_rows
    plan = step_plan(training, rows=rows, seed=recipe.seed)
    rank_budget(model, training.rank_budget, total=len(plan))
    tokens = len(plan) * training.global_batch_size * min(TOKENS_PER_ROW[data.format], data.max_length)
    return [
        *describe(model, plan, base=recipe.model, adapter=recipe.adapter, training=training),
        f"{rows:,} training rows from {data.source} ({', '.join(data.tasks)}) in format {data.format};"
        f" {data.validation_rows} validation rows" + ("; minus the leaks, not counted yet" if data.drop_leaks else ""),
        f"about {float(f'{tokens:.2g}'):,.0f} tokens (an estimate: nothing was downloaded to count them)",
    ]


def describe(
    model: PreTrainedModel, plan: StepPlan, *, base: ModelSection, adapter: AdapterSection, training: TrainingSection
) -> list[str]:
    """The lines that a run prints at its start."""
    # Not numel(): a packed 4-bit weight has fewer entries than parameters.
    trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    layers, learned = len(list(named_adapters(model))), mixer_learns(model)
    own = {"mixer_rate_ratio": (training.mixer_rate_ratio, 1), "mixer_weight_decay": (training.mixer_weight_decay, 0)}
    notes = [
        f"note: training.{field} = {value:g} has no effect: this mixer has no learned parameters"
        for field, (value, default) in own.items()
        if value != default and not learned
    ]
    if (warmup := training.warmup(len(plan))) >= len(plan):
        notes.append(f"note: training.warmup_steps = {warmup:,} of {len(plan):,} steps: the learning rate only rises")
    rates = [f"B × {training.lora_plus_ratio:g}"] if training.lora_plus_ratio != 1 else []
    rates += [f"M × {training.mixer_rate_ratio:g}"] if training.mixer_rate_ratio != 1 and learned else []
    return [
        f"{base.name} in {base.precision}, {layers} layers adapted: {adapter.summary()}",
        f"{trainable:,} trainable parameters of {total:,} ({trainable / total:.3%})",
        f"{len(plan):,} steps of {training.global_batch_size} rows, learning rate {training.learning_rate:g}"
        + (f" ({', '.join(rates)})" if rates else "")
        + f", {training.schedule} after {warmup} warm-up steps",
        *notes,
    ]
