"""Validation questions of a run: which of its held-out training rows are asked as questions, and how many."""

from collections.abc import Sequence

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.console import note
from moslora.data.prepared import TrainingData
from moslora.data.steps import StepPlan
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.evaluator import ModelWithQuestions
from moslora.evaluation.request import Request
from moslora.recipe import Recipe, TrainingSection
from moslora.runs.answers import order_key
from moslora.tasks import Example

SHARE_OF_TRAINING = 0.02
"""Share of a run's time that the questions of all its validations take by default."""

COST_OF_A_SCORED_TOKEN = 0.5
"""Time to score a token, relative to training on it: a frozen weight has one product forwards, and a second one for the
gradient of its input (`moslora.plan.duration.cost`)."""

TOKENS_OF_A_TASK = 64
"""Cost of a task besides its own tokens, in scored tokens, as it has passes of its own: by CPU seconds of SmolLM2-135M
in bfloat16 on an AMD EPYC, 25 and 120 questions of eight tasks by protocol cloze."""

TOKENS_OF_A_WRITTEN_TASK = 256
"""Cost of a task besides its own tokens where answers are written, in a short pass for each of their tokens: 24
questions by protocol generate."""


def refuse_too_few_questions(training: TrainingSection, data: TrainingData) -> None:
    """Refuse settings that ask more questions, or write more samples, than the validation rows allow."""
    wanted = training.validation_questions
    available = len(data.questions)
    rows = len(data.validation)
    counts = f"of {rows} validation rows, {available} are questions of a task"
    if wanted is not None and wanted > available:
        fix = f"set {available}, or more data.validation_rows"
        raise UsageError(f"training.validation_questions = {wanted}: {counts}; {fix}")
    if training.samples > rows:
        fix = f"set {rows}, or more data.validation_rows"
        raise UsageError(f"training.samples = {training.samples}: there are {rows} validation rows; {fix}")
    if training.is_selected_by_accuracy and not available:
        raise UsageError(f"training.best_by: there is no accuracy: {counts}; set best_by: loss")


def validation_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    data: TrainingData,
    *,
    count: int | None = None,
) -> ModelWithQuestions | None:
    """Questions that each validation of a run asks, as `moslora eval` would; ``None`` if it asks none.

    They are the first of the validation rows in the order of `order_key`.

    Args:
        model: of the run, with adapters; also on the meta device, where nothing is asked.
        tokenizer: of the base.
        recipe: of the run.
        data: its rows.
        count: number of questions that each validation asked before the run was resumed, which is kept where the recipe
            leaves it open; ``None`` for a new run.

    Raises:
        MosloraError: the protocol cannot score the questions that the recipe wants. Where it does not say how many they
            are, and they decide nothing, none are asked, with a note.
    """
    training = recipe.training
    if training.validation_questions is not None:
        count = training.validation_questions
    candidates = sorted(data.questions, key=lambda example: order_key(example.id))[:count]
    if not candidates:
        return None
    request = Request.of(recipe).model_copy(update={"limit": None, "skip": 0})
    try:
        everything = ModelWithQuestions.of(model, tokenizer, examples_by_task(candidates), request)
        if count is not None:
            return everything
        budget = tokens_of_a_validation(recipe, data)
        chosen = _first_within(everything, candidates, budget)
        if training.is_selected_by_accuracy and not chosen:
            raise UsageError(
                f"training.best_by: accuracy needs questions, and {SHARE_OF_TRAINING:.0%} of this short run's time is"
                f" too little for one; set training.validation_questions, up to {len(candidates)}"
            )
    except MosloraError as fault:
        if training.validation_questions is not None or training.is_selected_by_accuracy:
            raise
        note(f"no validation questions are asked: {fault}")
        return None
    if not chosen:
        return None
    return ModelWithQuestions.of(model, tokenizer, examples_by_task(chosen), request)


def examples_by_task(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Group the examples by task, in the order given."""
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    return by_task


def tokens_of_a_validation(recipe: Recipe, data: TrainingData) -> float:
    """Number of tokens that the questions of each validation may have, so that all validations together take
    `SHARE_OF_TRAINING` of the run's time."""
    rows = data.rows
    plan = StepPlan(recipe.training, rows=len(rows), seed=recipe.seed)
    trained = len(plan) * plan.global_batch_size * rows.token_count() / len(rows)
    return SHARE_OF_TRAINING * trained / COST_OF_A_SCORED_TOKEN / recipe.training.validations(len(plan))


def _first_within(everything: ModelWithQuestions, candidates: Sequence[Example], tokens: float) -> list[Example]:
    """Return the first questions among ``candidates`` that have at most ``tokens`` tokens together."""
    tasks = {task.name: task for task in everything.prepared.tasks}
    started = set()
    chosen = []
    for example in candidates:
        task = tasks[example.task]
        if task.name not in started:
            tokens -= TOKENS_OF_A_WRITTEN_TASK if task.scorer.protocol.writes else TOKENS_OF_A_TASK
            started.add(task.name)
        tokens -= task.scorer.length(task.scorer.encode(example), everything.model)
        if tokens < 0:
            break
        chosen.append(example)
    return chosen
