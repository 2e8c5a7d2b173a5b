"""Describes a run in a few lines, without weights or network, and without data where none is at hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from moslora.adapters import named_adapters
from moslora.base.load import load_tokenizer
from moslora.base.resolve import at_hand
from moslora.base.shapes import meta_model
from moslora.data.encode import Encoder
from moslora.data.prepared import RunRows, TrainingData
from moslora.data.select import refuse_all_set_aside
from moslora.data.sources import row_counts
from moslora.data.steps import StepPlan
from moslora.recipe import AdapterSection, DataSection, ModelSection, Recipe, TrainingSection
from moslora.tasks import Task
from moslora.training.budget import RankBudget
from moslora.training.optimizer import mixer_learns
from moslora.training.prepare import adapt, step_plan

TOKENS_PER_ROW = {"llm-adapters": 132, "label": 105, "cloze": 60, "cloze-passage": 75, "chat": 140}
"""Mean tokens of a row over the eight sets with LLaMA-3's tokenizer, for an estimate."""


@dataclass(frozen=True)
class Outline:
    """A run before anything of it is loaded.

    Attributes:
        model: with adapters, on the meta device.
        plan: its steps.
        data: the encoded rows, if an earlier command has made them.
        tokens: of the whole run; an estimate without ``data``.
        lines: the run in words.
    """

    model: PreTrainedModel
    plan: StepPlan
    data: TrainingData | None
    tokens: int
    lines: list[str]


def dry_run(recipe: Recipe) -> Outline:
    """The run, counted on the meta device and from the rows at hand, or else from the task table."""
    training = recipe.training
    model = meta_model(recipe.model)
    adapt(model, recipe.adapter_options(), seed=recipe.seed)
    data = _at_hand(recipe)
    rows = len(data.rows) if data else _row_count(recipe.data, recipe.training_tasks)
    plan = step_plan(training, rows=rows, seed=recipe.seed)
    if training.rank_budget:
        RankBudget(model, training.rank_budget, total=len(plan))  # refuses what does not fit
    mean = data.rows.token_count() / rows if data else min(TOKENS_PER_ROW[recipe.data.format], recipe.data.max_length)
    tokens = round(len(plan) * training.global_batch_size * mean)
    lines = describe(model, plan, base=recipe.model, adapter=recipe.adapter, training=training)
    lines += data.remarks() if data else _estimate(recipe.data, rows=rows, tokens=tokens)
    return Outline(model, plan, data, tokens, lines)


def _at_hand(recipe: Recipe) -> TrainingData | None:
    """The rows, if the tokenizer is in the cache, and they are there too or in files of this machine."""
    folder = at_hand(recipe.model.name, revision=recipe.model.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = load_tokenizer(recipe.model.model_copy(update={"name": str(folder), "revision": None}))
    encoder = Encoder(tokenizer, max_length=recipe.data.max_length)
    return RunRows(recipe.data, recipe.training_tasks, recipe.questions, encoder, recipe.seed).at_hand()


def _row_count(data: DataSection, tasks: Sequence[Task]) -> int:
    """Training rows by the task table."""
    counts = row_counts(tasks, source=data.source)
    if data.rows is not None:
        caps = data.rows if isinstance(data.rows, dict) else dict.fromkeys(counts, data.rows)
        counts = {task: min(count, caps.get(task, count)) for task, count in counts.items()}
    refuse_all_set_aside(sum(counts.values()), validation_rows=data.validation_rows)
    return sum(counts.values()) - data.validation_rows


def _estimate(data: DataSection, *, rows: int, tokens: int) -> list[str]:
    return [
        f"{rows:,} training rows ({', '.join(data.tasks)}; source {data.source}) in format {data.format};"
        f" {data.validation_rows} validation rows" + ("; minus the leaks, not counted yet" if data.drop_leaks else ""),
        f"about {float(f'{tokens:.2g}'):,.0f} tokens (an estimate: nothing was downloaded to count them)",
    ]


def describe(
    model: PreTrainedModel, plan: StepPlan, *, base: ModelSection, adapter: AdapterSection, training: TrainingSection
) -> list[str]:
    """The lines that a run prints at its start."""
    # A packed 4-bit weight has fewer entries than parameters.
    linear = {
        layer.weight: layer.in_features * layer.out_features
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    }
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(linear.get(p, p.numel()) for p in model.parameters())
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
