"""A run in a few lines, without weights or network, and without data where none is at hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from moslora.base.load import load_tokenizer
from moslora.base.resolve import at_hand
from moslora.base.shapes import meta_model
from moslora.data.encode import Encoder
from moslora.data.prepared import RunRows, TrainingData
from moslora.data.select import refuse_all_set_aside
from moslora.data.sources import row_counts
from moslora.data.steps import StepPlan
from moslora.plan.step import Work
from moslora.recipe import DataSection, Recipe
from moslora.tasks import Task
from moslora.training.budget import RankBudget
from moslora.training.prepare import adapt
from moslora.training.run_card import describe

TOKENS_PER_ROW = {"llm-adapters": 132, "label": 105, "cloze": 60, "cloze-passage": 75, "chat": 140}
"""Mean tokens of a row over the eight sets with LLaMA-3's tokenizer, for an estimate."""

LABELLED = 0.25
"""Share of the tokens that are taken as labelled where the loss is on the answers and no row is at hand."""


@dataclass(frozen=True)
class Outline:
    """A run before anything of it is loaded."""

    model: PreTrainedModel  # with adapters, on the meta device
    plan: StepPlan
    data: TrainingData | None  # the encoded rows, if an earlier command made them or they are in files of this machine
    max_length: int  # the most tokens of a row
    labelled: float  # share of the tokens that have a label; an estimate without ``data``
    tokens: int  # of the whole run; an estimate without ``data``
    lines: list[str]  # the run in words

    def share_of_a_step(self, processes: int) -> Work:
        """The largest share of a step (of the first 4,096) that one of ``processes`` has, as one micro-batch, with the
        longest row of all; without rows at hand, all are of ``max_length``."""
        if self.data is None:
            rows = -(-self.plan.global_batch_size // processes)
            return Work((self.max_length,) * rows, self.labelled)
        lengths = self.data.rows.lengths()
        steps = [self.plan[step] for step in range(min(len(self.plan), 4_096))]
        shares = [sorted(lengths[row] for row in step[rank::processes]) for step in steps for rank in range(processes)]
        longest = max(share[-1] for share in shares if share)
        return Work((*max(shares, key=sum)[:-1], longest), self.labelled)


def outline(recipe: Recipe) -> Outline:
    """The run, counted on the meta device and from the rows at hand, or else from the task table."""
    training, section, tasks = recipe.training, recipe.data, recipe.training_tasks
    model = adapt(meta_model(recipe.model), recipe)
    data = _at_hand(recipe)
    rows = len(data.rows) if data else _row_count(section, tasks)
    plan = StepPlan.of(training, rows=rows, seed=recipe.seed)
    if training.rank_budget:
        RankBudget(model, training.rank_budget, total=len(plan))  # refuses what does not fit
    mean = data.rows.token_count() / rows if data else min(TOKENS_PER_ROW[section.format], section.max_length)
    tokens = round(len(plan) * training.global_batch_size * mean)
    lines = describe(model, plan, base=recipe.model, adapter=recipe.adapter, training=training)
    if data:
        labelled = data.rows.label_count() / data.rows.token_count()
        return Outline(model, plan, data, section.max_length, labelled, tokens, [*lines, *data.remarks()])
    lines += [
        f"{rows:,} training rows ({', '.join(section.tasks)}; source {section.source}) in format {section.format};"
        f" {section.validation_rows} validation rows",
        f"about {float(f'{tokens:.2g}'):,.0f} tokens (an estimate: nothing was downloaded to count them)",
    ]
    labelled = 1 if section.loss_on == "all" else LABELLED
    return Outline(model, plan, None, section.max_length, labelled, tokens, lines)


def _at_hand(recipe: Recipe) -> TrainingData | None:
    """The rows, if the tokenizer is in the cache, and they are there too or in files of this machine."""
    model, data = recipe.model, recipe.data
    folder = at_hand(model.name, revision=model.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = load_tokenizer(model.model_copy(update={"name": str(folder), "revision": None}))
    encoder = Encoder(tokenizer, max_length=data.max_length)
    return RunRows(data, recipe.training_tasks, encoder, recipe.seed).at_hand()


def _row_count(data: DataSection, tasks: Sequence[Task]) -> int:
    """Training rows by the task table."""
    counts = row_counts(tasks, source=data.source)
    caps = data.rows if isinstance(data.rows, dict) else dict.fromkeys(counts, data.rows)
    total = sum(min(count, caps.get(task) or count) for task, count in counts.items())
    refuse_all_set_aside(total, validation_rows=data.validation_rows)
    return total - data.validation_rows
