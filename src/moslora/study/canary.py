"""The canary: held-out training rows asked as in the test while a model trains, to notice early that it collapses."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from moslora.adapters import describe_batch
from moslora.base.load import load_tokenizer, name_task
from moslora.data.select import select
from moslora.errors import UsageError
from moslora.evaluation.batches import canonical_order
from moslora.evaluation.predictions import collapse, macro, score_task
from moslora.evaluation.request import Request
from moslora.evaluation.run import make_scorer
from moslora.recipe import Recipe
from moslora.tasks import INSTRUCTION, Example
from moslora.training.run import Canary


def make_canary(recipe: Recipe) -> Canary:
    """Asks the first ``training.canary_rows`` of the validation rows, in an order by their ids."""
    request, tokenizer = Request.of(recipe), load_tokenizer(recipe.model)
    held_out = select(recipe.data, recipe.training_tasks, recipe.questions, seed=recipe.seed).validation
    asked: dict[str, list[Example]] = {}
    for row in [row for row in canonical_order(held_out) if row.task != INSTRUCTION][: recipe.training.canary_rows]:
        asked.setdefault(row.task, []).append(row)
    if not asked:
        raise UsageError("training.canary_rows: none of the validation rows is a question with options; set it to 0")

    @torch.inference_mode()
    def canary(model: PreTrainedModel, batch_tokens: int) -> Mapping[str, float | str]:
        tasks = {}
        try:
            scorer = make_scorer(model.eval(), tokenizer, request.model_copy(update={"batch_tokens": batch_tokens}))
            for task, rows in asked.items():
                name_task(model, task)
                tasks[task] = score_task(scorer.score(rows), drift=None)
        finally:
            describe_batch(model)
            model.train()
        average = macro(list(tasks.values()))
        signs = collapse(tasks, average, scorer.primary)
        return {
            "canary": getattr(average, scorer.primary),
            "canary_majority_class": average.majority_class,
            **({"canary_collapse": "; ".join(signs)} if signs else {}),
        }

    return canary
