"""A run's records in the trackers that its recipe names, written by accelerate's classes.

``run.json`` has the id of each record: a resumed training goes on in it, and evaluations add their scores.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from textwrap import indent
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker, get_available_trackers

from moslora.choices import TrackerName
from moslora.console import note
from moslora.errors import MosloraError, UsageError, first_line
from moslora.processes.devices import device
from moslora.recipe import Recipe
from moslora.recipe.recipe import flat
from moslora.runs.run import Run

Records = Sequence[tuple[Any, int]]
"""Open records: accelerate's tracker, and the first step that it has not logged."""


class TrackerKind(NamedTuple):
    """Functions that open and continue a run's record in a kind of experiment tracker, such as wandb."""

    tracker: Callable[
        [Recipe, Run, str | None, int | None], Any
    ]  # opens the record with this id, for steps from this one on
    reached: Callable[[Any], tuple[str, int]]  # id of the record, and the first step that it has not logged
    describe: Callable[[Any, Recipe], None] = lambda tracker, recipe: (
        None
    )  # describes a new record, if `tracker` does not
    score: Callable[[Any, dict[str, float], int], None] = lambda tracker, scores, step: tracker.log(scores, step)
    forgets: bool = False  # whether a start at step 0 deletes what a killed run wrote, its description too


def _common(recipe: Recipe, name: str | None = None) -> dict[str, Any]:
    """Arguments that wandb and Trackio share."""
    config = recipe.model_dump(mode="json")
    return {"run_name": recipe.tracking.project, "name": name or recipe.name, "config": config, "resume": "allow"}


def _reached_in_mlflow(record: Any) -> tuple[str, int]:
    """Id of a record of MLflow, and the first step that it has not logged."""
    from mlflow import MlflowClient

    steps = [-1]
    for metric in ("train/loss", "validation/loss"):
        steps += [value.step for value in MlflowClient().get_metric_history(record.info.run_id, metric)]
    return record.info.run_id, max(steps) + 1


KINDS: dict[TrackerName, TrackerKind] = {
    "wandb": TrackerKind(
        lambda recipe, run, id, step: WandBTracker(**_common(recipe), dir=run.path, id=id),
        lambda record: (record.id, record.step),
        score=lambda tracker, scores, step: tracker.tracker.summary.update(scores),  # its steps can only rise
    ),
    "tensorboard": TrackerKind(
        lambda recipe, run, id, step: TensorBoardTracker("tensorboard", run.path, purge_step=step),
        lambda record: ("tensorboard", 0),  # the steps from `purge_step` on are gone
        lambda tracker, recipe: tracker.log({"recipe": indent(recipe.to_yaml(), "    ")}),
        forgets=True,
    ),
    "trackio": TrackerKind(  # finds a record by its name
        lambda recipe, run, id, step: TrackioTracker(**_common(recipe, id or f"{recipe.name}-{token_hex(3)}")),
        lambda record: (record.name, getattr(record, "_next_step", 0)),  # not public; else it repeats its last steps
    ),
    "mlflow": TrackerKind(
        lambda recipe, run, id, step: MLflowTracker(recipe.tracking.project, run_name=recipe.name, run_id=id),
        _reached_in_mlflow,
        lambda tracker, recipe: tracker.store_init_configuration(flat(recipe.model_dump(mode="json"))),
    ),
}


def refuse_missing_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse trackers whose package is not installed, which accelerate would leave out silently."""
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = " ".join(name for name in names if name not in available)
    if missing:
        raise UsageError(f"tracking.to: {missing} not installed; pip install {missing}, or set tracking.to=[]")


@contextmanager
def record(name: TrackerName, recipe: Recipe, run: Run, *, after: int | None = None) -> Iterator[tuple[Any, int]]:
    """Open the record of ``run`` in a tracker, on the main process only.

    Args:
        after: number of steps that were trained before this process, 0 for a new run; ``None`` for scores.
    """
    kind = KINDS[name]
    known_id = run.facts.get(f"{name}_id")
    step = after + 1 if after else after
    PartialState(cpu=device().type == "cpu")  # accelerate's classes read it
    try:
        tracker = kind.tracker(recipe, run, known_id, step)
        tracker.start()
        id, next_step = kind.reached(tracker.tracker)
        begins_again = after == 0 and kind.forgets
        if known_id is None or begins_again:
            kind.describe(tracker, recipe)
        if known_id is None:
            run.add_facts(**{f"{name}_id": id})
    except Exception as error:  # of any kind
        raise MosloraError(f"{name} does not start ({first_line(error)}); tracking.to=[] trains without it") from error
    try:
        yield tracker, next_step
    finally:
        try:
            tracker.finish()
        except Exception as error:  # of any kind, since the training is done
            note(f"{name} was not closed: {first_line(error)}")
