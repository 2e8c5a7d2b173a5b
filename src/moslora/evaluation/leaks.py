"""Which test questions the training rows give away: found again at every evaluation, as it may ask other questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moslora.checkpoint import AdapterFolder
from moslora.console import note
from moslora.data.overlap import leaked
from moslora.data.select import select
from moslora.data.sources import data_hash, load_training
from moslora.errors import MosloraError, UsageError, first_line
from moslora.evaluation.without_leaks import Leaks
from moslora.tasks import Example


def find_leaks(run: AdapterFolder | None, questions: Mapping[str, Sequence[Example]], *, source: str) -> Leaks | None:
    """The questions that are also training rows: of the run, else of the place that the questions come from.

    Args:
        run: the run whose model, or whose base, is scored; ``None`` for a model that is nobody's run.
        questions: task -> all its test questions.
        source: where they come from.

    Returns:
        ``None``, with a note, where the training rows are gone or have changed, or the source has none.
    """
    try:
        rows, words = _trained_on(run) if run else _training_split(tuple(questions), source)
    except MosloraError as error:
        note(f"whether training gave questions away is not known: {first_line(error)}")
        return None
    return Leaks(words, leaked([row for task in questions.values() for row in task], rows))


def _trained_on(run: AdapterFolder) -> tuple[list[Example], str]:
    if "data" not in run.manifest:
        raise UsageError(f"{run.path}: an imported adapter, which does not say what it was trained on")
    recipe = run.recipe
    rows = select(recipe.data, recipe.evaluation, seed=recipe.seed).training
    if data_hash(rows) != run.manifest["data"]["sha256"]:
        raise UsageError(f"{recipe.data.source}: its rows have changed since this run was trained on them")
    return rows, f"the {len(rows):,} rows this run was trained on"


def _training_split(tasks: tuple[str, ...], source: str) -> tuple[list[Example], str]:
    if Path(source).expanduser().is_file():
        raise UsageError(f"{source}: one file has no training rows beside its questions")
    rows = load_training(tasks, source=source)
    return rows, f"the {len(rows):,} training rows of {source}"
