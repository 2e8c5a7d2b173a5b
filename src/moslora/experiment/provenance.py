"""Provenance of a run: hashes of all that its numbers depend on, and how they differ from those of a planned run.

The hashes of rows and bases themselves are computed in `moslora.data` and `moslora.base`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import moslora.adapter_options
import moslora.adapters
import moslora.base
import moslora.convert.strength
import moslora.data
import moslora.evaluation
import moslora.kernels
import moslora.mixer_options
import moslora.prompts
import moslora.recipe
import moslora.runs
import moslora.strength
import moslora.tasks
import moslora.training
from moslora.base.adapted import adapters_of
from moslora.base.identity import fingerprint, packages
from moslora.base.load import load_tokenizer
from moslora.choices import FormatName, Split
from moslora.data.encode import Encoder, encoding
from moslora.data.sources import identity
from moslora.errors import MosloraError
from moslora.experiment.file import PlannedRun
from moslora.files import sha256
from moslora.recipe import Changes, ModelSection, Recipe
from moslora.recipe.recipe import changed_keys
from moslora.runs.origin import hash_of_predecessor
from moslora.tasks import Task
from moslora.version import PACKAGE, source_files

CODE = (
    moslora.adapter_options,
    moslora.adapters,
    moslora.base,
    moslora.convert.strength,
    moslora.data,
    moslora.evaluation,
    moslora.kernels,
    moslora.mixer_options,
    moslora.prompts,
    moslora.recipe,
    moslora.runs,
    moslora.strength,
    moslora.tasks,
    moslora.training,
)
"""Packages and modules that compute the numbers of a run."""

REMADE: tuple[Changes, ...] = (Changes.DRAW, Changes.TRAINED, Changes.ROWS, Changes.READING)
"""Marks of the recipe values that change a run's numbers. What is at a path is in the hashes instead."""

HASHES = ("rows", "questions", "base", "start", "tokenizer", "chat_template", "code")
"""Keys of the hashes in a provenance. ``start`` is that of the adapter that a run continues."""

RECORDED = (*HASHES, "packages")
"""Keys of a provenance."""


def provenance(planned: PlannedRun, *, fetching: bool = True) -> dict[str, Any]:
    """Return hashes of all that a run's numbers depend on besides its recipe, and the versions of packages.

    Args:
        planned: run; only a scored one has a hash of questions.
        fetching: whether to hash base and rows, which may have to be fetched; otherwise only code and packages.

    Returns:
        `HASHES` -> hash, and ``packages`` -> versions.
    """
    recipe = planned.recipe
    facts: dict[str, Any] = {}
    if fetching:
        facts["rows"] = _rows("train", (*recipe.training_tasks, *recipe.replayed), recipe.data.source)
        facts["base"] = fingerprint(recipe.model.name, revision=recipe.model.revision)
        facts["start"] = hash_of_predecessor(recipe.adapter.continue_from)
        facts |= _encoding(recipe.model, recipe.data.format)
    facts["code"] = code()
    facts["packages"] = packages(*adapters_of(recipe).packages, quantized=recipe.model.quantization is not None)
    if fetching and planned.scored:
        facts["questions"] = _rows("test", *recipe.questions)
    return facts


@cache
def _encoding(model: ModelSection, format: FormatName) -> dict[str, str]:
    """Return hashes of tokenizer and chat template, computed once per process."""
    return encoding(Encoder(load_tokenizer(model), max_length=None), format)


@cache
def _rows(split: Split, tasks: tuple[Task, ...], source: str) -> str:
    """Return the hash of the rows, computed once per process."""
    return _hash(identity(tasks, split, source=source))


def changes(
    planned: PlannedRun, recipe: Recipe, made_with: Mapping[str, Any], *, any_code: bool, fetching: bool = True
) -> list[str]:
    """Return the differences between a planned run and a run on disk, as lines.

    What an earlier version did not record is no difference.

    Args:
        planned: planned run.
        recipe: recipe of the run on disk.
        made_with: provenance of the run on disk.
        any_code: whether to ignore other code and versions of packages.
        fetching: whether to compare base and rows, which may have to be fetched.
    """
    marks = (*REMADE, Changes.ASKED) if planned.scored else REMADE
    differences = planned.recipe.differences(recipe, *marks)
    start = planned.recipe.adapter.continue_from
    if start is None or recipe.adapter.continue_from is None:  # two places may hold the same weights
        differences += planned.recipe.differences(recipe, Changes.START)
    if fetching:
        try:
            hash_of_predecessor(start)
        except MosloraError as error:
            return [*differences, f"cannot be made again: {error}"]
    current = provenance(planned, fetching=fetching)
    if any_code:
        made_with = {**made_with, "code": current["code"], "packages": current["packages"]}
    for key in HASHES:
        if key in made_with and key in current and made_with[key] != current[key]:
            differences.append(f"the {key.replace('_', ' ')} changed")
    recorded = made_with.get("packages", {})
    versions = {name: current["packages"].get(name) for name in recorded}
    return [*differences, *changed_keys(recorded, versions).values()]


@cache
def code() -> str:
    """Return the hash of the source files of `CODE`, the same under every Python.

    A commit also changes with a document, and the version of the package seldom changes with the code.
    """
    return _hash({path.relative_to(PACKAGE).as_posix(): sha256(path) for path in source_files(CODE)})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
