"""What a recipe would train, without weights, data or network: counted on the meta device and from the task table."""

from moslora.data.select import refuse_all_set_aside
from moslora.data.sources import row_counts
from moslora.llama import meta_model
from moslora.recipe import Recipe
from moslora.training.run import adapt, rank_budget, step_plan
from moslora.training.summary import describe

TOKENS_PER_ROW = {"llm-adapters": 132, "label": 105, "cloze": 60, "cloze-passage": 75}
"""Mean tokens of a row over the eight sets in their natural shares, LLaMA-3's tokenizer: for an estimate only."""


def dry_run(recipe: Recipe) -> list[str]:
    """The run in a few lines: parameters, rows, steps, batches; token counts as estimates.

    Raises:
        UsageError: no layer matches, no row would be left to train on, or a rank budget does not fit the run.
    """
    model = meta_model(recipe.model)
    adapted = adapt(model, recipe)
    data, training = recipe.data, recipe.training
    counts = row_counts(data.tasks, source=data.source, winogrande=data.winogrande)
    if data.rows is not None:
        caps = data.rows if isinstance(data.rows, dict) else dict.fromkeys(counts, data.rows)
        counts = {task: min(count, caps.get(task, count)) for task, count in counts.items()}
    refuse_all_set_aside(sum(counts.values()), validation_rows=data.validation_rows)
    rows = sum(counts.values()) - data.validation_rows
    plan = step_plan(recipe, rows=rows)
    rank_budget(model, recipe, total=len(plan))
    tokens = len(plan) * training.global_batch_size * min(TOKENS_PER_ROW[data.format], data.max_length)
    return [
        *describe(recipe, model, adapted=adapted, plan=plan),
        f"{rows:,} training rows from {data.source} ({', '.join(data.tasks)}) in format {data.format};"
        f" {data.validation_rows} validation rows" + ("; less the leaks, not counted yet" if data.drop_leaks else ""),
        f"about {float(f'{tokens:.2g}'):,.0f} tokens (an estimate: nothing was downloaded to count them)",
    ]
