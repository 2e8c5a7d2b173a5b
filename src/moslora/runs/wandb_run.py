"""A run's own run on Weights & Biases: the one that its training began, for a resumed one and for evaluations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moslora.console import is_main_process
from moslora.errors import UsageError
from moslora.recipe import Recipe
from moslora.runs.run import Run


@contextmanager
def wandb_run(recipe: Recipe, run: Run) -> Iterator[Any]:
    """The run on Weights & Biases, whose id is in ``run.json``; ``None`` without a project, or in a worker."""
    tracking = recipe.tracking
    if tracking.wandb_project is None or not is_main_process():
        yield None
        return
    try:
        import wandb
    except ImportError:
        raise UsageError("tracking.wandb_project is set, but wandb is not installed; pip install wandb") from None
    opened = wandb.init(
        project=tracking.wandb_project,
        name=recipe.name,
        dir=run.path,
        config=recipe.model_dump(mode="json"),
        id=run.facts.get("wandb_id"),
        resume="allow",
    )
    run.add_facts(wandb_id=opened.id)
    try:
        yield opened
    finally:
        opened.finish()
