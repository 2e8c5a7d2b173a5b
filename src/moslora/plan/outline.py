"""Outline of a run: model, steps and rows, known before any weights are loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from moslora.base.engines import engine_of
from moslora.base.load import choose_engine_of, load_tokenizer
from moslora.base.resolve import available_offline
from moslora.base.shapes import meta_model
from moslora.data.encode import Encoder
from moslora.data.prepared import RunRows, TrainingData
from moslora.data.sources import row_counts
from moslora.data.steps import StepPlan, default_micro_batch_tokens
from moslora.evaluation.batches import WRITTEN_BLOCK_SIZE
from moslora.evaluation.request import Request
from moslora.plan.duration import HOST_OF_A_SCORED_LAYER, Cost, cost
from moslora.plan.step import Work
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import DataSection, ModelSection, Recipe
from moslora.runs.continued import read_continued
from moslora.tasks import Task
from moslora.training.budget import RankBudget
from moslora.training.prepare import adapt
from moslora.training.questions import COST_OF_A_SCORED_TOKEN, refuse_too_few_questions
from moslora.training.run_card import describe

TOKENS_PER_ROW = {"llm-adapters": 132, "label": 105, "cloze": 60, "cloze-passage": 75, "chat": 140}
"""Mean tokens of a row over the eight sets with LLaMA-3's tokenizer, for an estimate."""

LABELLED = 0.25
"""Assumed share of tokens with a label where the loss is on the answers and no row is available."""

WRITTEN_TOKENS = 16
"""Assumed mean tokens of a written text."""

SEARCHED_STEPS = 4_096
"""Steps of a run that are searched for its largest micro-batch."""


@dataclass(frozen=True)
class Outline:
    """Outline of a run: its model without weights, its plan of steps, and its rows or an estimate of them."""

    model: PreTrainedModel  # with adapters, on the meta device
    plan: StepPlan
    data: TrainingData | None  # the encoded rows, if an earlier command made them or they are in files of this machine
    max_length: int  # the most tokens of a row
    labelled: float  # share of the tokens that have a label; an estimate without ``data``
    tokens: int  # that the whole run trains on; an estimate without ``data``
    validated: float  # tokens of training that take as long as the rows of all validations
    summary: list[str]  # the run in words
    replayed: float = 0.0  # share of the tokens that are of replayed texts

    def share_of_a_step(self, processes: int) -> Work:
        """Rows of the largest share of a step that one of ``processes`` has, as one micro-batch.

        Its longest row is replaced by the longest row of all shares. The first :data:`SEARCHED_STEPS` steps count.
        Without available rows, every row has ``max_length`` tokens.
        """
        if self.data is None:
            rows = math.ceil(self.plan.global_batch_size / (1 - self.replayed) / processes)
            return Work((self.max_length,) * rows, self.labelled)
        lengths = self.data.rows.lengths()
        shares = []
        for step in range(min(len(self.plan), SEARCHED_STEPS)):
            drawn = [lengths[row] for row in self.plan[step]]
            if self.data.replay is not None:
                texts = self.data.replay.beside(step, [self.data.rows[row] for row in self.plan[step]])
                drawn += [len(text.input_ids) for text in texts]
            for rank in range(processes):
                of_rank = drawn[rank::processes]
                if of_rank:
                    shares.append(sorted(of_rank))
        longest = max(share[-1] for share in shares)
        others = max(shares, key=sum)[:-1]
        return Work((*others, longest), self.labelled)

    def cost(self, recipe: Recipe, *, processes: int, budget: int) -> Cost:
        """Work of the whole run on ``processes`` processes, with its validations, in passes of up to ``budget``
        tokens."""
        steps = len(self.plan)
        tokens_per_step = self.tokens / steps
        tokens = self.tokens + self.validated
        return cost(
            self.model,
            recipe.model,
            tokens=tokens,
            labels=tokens * self.labelled,
            row=tokens_per_step / self.plan.global_batch_size,
            passes=steps * processes * math.ceil(tokens_per_step / processes / budget),
        )


def evaluation(
    model: PreTrainedModel, section: ModelSection, request: Request, tasks: Sequence[Task]
) -> tuple[int, Cost]:
    """Number of test questions, and the work of scoring them, of those ``tasks`` that are among the eight commonsense
    sets."""
    left = [max(0, task.rows.get("test", 0) - request.skipped(task.name)) for task in tasks]
    count = sum(min(rows, request.limit or rows) for rows in left)
    row = TOKENS_PER_ROW[request.format]
    tokens = count * row
    passes = tokens / default_micro_batch_tokens(on_gpu=True)
    if PROTOCOLS[request.protocol].writes:
        tokens += count * request.beams * WRITTEN_TOKENS
        passes += count / WRITTEN_BLOCK_SIZE * WRITTEN_TOKENS
    scored = COST_OF_A_SCORED_TOKEN * tokens
    launched = HOST_OF_A_SCORED_LAYER * passes
    once = section.model_copy(update={"gradient_checkpointing": False})
    return count, cost(model, once, tokens=scored, labels=count, row=row, passes=launched)


def outline(recipe: Recipe) -> Outline:
    """Outline the run of ``recipe``, with parameters counted on the meta device.

    Rows and tokens are counted if `RunRows.prepare_offline` has the rows. Otherwise `row_counts` gives the
    number of rows, and the number of tokens is estimated.
    """
    training = recipe.training
    section = recipe.data
    model = adapt(meta_model(recipe.model), recipe)
    choose_engine_of(model, recipe.model, computed_here=False)
    encoder = _offline_encoder(recipe)
    data = None
    if encoder is not None:
        data = RunRows.of(recipe, encoder).prepare_offline()
    if data:
        rows = len(data.rows)
        held_out = len(data.validation)
        tokens_of_rows = data.rows.token_count()
        tokens_per_row = tokens_of_rows / rows
        labelled = data.rows.label_count() / tokens_of_rows
    else:
        total = _row_count(section, recipe.training_tasks)
        held_out = section.held_out_of(total)
        rows = total - held_out
        tokens_per_row = min(TOKENS_PER_ROW[section.format], section.max_length)
        labelled = 1.0 if section.loss_on == "all" else LABELLED
    plan = StepPlan(training, rows=rows, seed=recipe.seed)
    if training.rank_budget:
        RankBudget(model, training.rank_budget, total=len(plan))  # refuses what does not fit
    tokens = round(len(plan) * training.global_batch_size * tokens_per_row)
    replayed = 0.0
    if section.replay is not None:
        of_rows = tokens * labelled
        of_texts = of_rows * section.replay.share / (1 - section.replay.share)
        tokens += round(of_texts)
        labelled = (of_rows + of_texts) / tokens
        replayed = of_texts / tokens
    lines = describe(model, plan, base=recipe.model, adapter=recipe.adapter, training=training)
    if engine_of(model).pads:
        lines.append("note: this model's rows are padded; the times below are those of packed rows, too short")
    start = read_continued(recipe, fetching=False)
    if start is not None:
        lines.append(f"continues {start.predecessor.with_hash}")
    if data:
        lines += data.remarks()
        refuse_too_few_questions(training, data)
    else:
        lines += [
            f"{rows:,} training rows ({', '.join(section.tasks)}; source {section.source}) in format {section.format};"
            f" {held_out} validation rows",
            f"about {float(f'{tokens:.2g}'):,.0f} tokens (an estimate: no row was encoded to count them)",
        ]
    validated = training.validations(len(plan)) * held_out * tokens_per_row * COST_OF_A_SCORED_TOKEN
    if validated:
        validations = f"{training.validations(len(plan)):,} validations of {held_out:,} rows"
        lines.append(
            f"{validations}, in about {validated / (tokens + validated):.1%} of the time, without their questions"
        )
    return Outline(model, plan, data, section.max_length, labelled, tokens, validated, lines, replayed)


def _offline_encoder(recipe: Recipe) -> Encoder | None:
    """Encoder of the rows; ``None`` if the tokenizer is not on this machine."""
    model = recipe.model
    folder = available_offline(model.name, revision=model.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = load_tokenizer(model.model_copy(update={"name": str(folder), "revision": None}))
    return Encoder(tokenizer, max_length=recipe.data.max_length)


def _row_count(data: DataSection, tasks: Sequence[Task]) -> int:
    """Number of training rows, by `row_counts` and the limits of `data.rows`."""
    total = 0
    for task, count in row_counts(tasks, source=data.source).items():
        limit = data.rows
        if isinstance(limit, dict):
            limit = limit.get(task)
        total += min(count, limit or count)
    return total
