"""Whether a number on disk is still the one that its run would give, up to the rounding of another machine."""

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
"""Packages and modules whose code makes the numbers."""

REMADE: tuple[Changes, ...] = (Changes.DRAW, Changes.TRAINED, Changes.ROWS, Changes.READING)
"""What the values of a recipe change with which a run is made again. What lies at a place is in the hashes."""

WHAT = ("rows", "questions", "base", "start", "tokenizer", "chat_template", "code")
"""What a run may be refused for: hashes in its provenance. ``start`` is of the adapter that it continues."""

RECORDED = (*WHAT, "packages")
"""All keys of a provenance."""


def provenance(planned: PlannedRun, *, fetching: bool = True) -> dict[str, Any]:
    """Everything besides its recipe that a run's numbers depend on: hashes by the keys of :data:`WHAT`, of which
    ``questions`` if it is scored; and ``packages``, the versions of those that compute. Without ``fetching`` code and
    packages alone, which need neither base nor rows."""
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
    """Hashes of tokenizer and chat template, computed once per process."""
    return encoding(Encoder(load_tokenizer(model), max_length=None), format)


@cache
def _rows(split: Split, tasks: tuple[Task, ...], source: str) -> str:
    """Hash of the rows, computed once per process."""
    return _hash(identity(tasks, split, source=source))


def changes(
    planned: PlannedRun, recipe: Recipe, made_with: Mapping[str, Any], *, any_code: bool, fetching: bool = True
) -> list[str]:
    """Differences between ``planned`` and a run that was made by ``recipe`` with the provenance ``made_with``.

    What the run's version did not record yet is not known to differ. ``any_code``: other code, or other versions of the
    packages that compute, are no difference. Without ``fetching``, base and rows, which may be elsewhere, are not
    looked at.
    """
    counted = (*REMADE, Changes.ASKED) if planned.scored else REMADE
    differences = planned.recipe.differences(recipe, *counted)
    start = planned.recipe.adapter.continue_from
    if start is None or recipe.adapter.continue_from is None:  # two places may hold the same weights
        differences += planned.recipe.differences(recipe, Changes.START)
    if fetching:
        try:
            hash_of_predecessor(start)
        except MosloraError as error:
            return [*differences, f"cannot be made again: {error}"]
    here = provenance(planned, fetching=fetching)
    if any_code:
        made_with = {**made_with, "code": here["code"], "packages": here["packages"]}
    for key in WHAT:
        if key in made_with and key in here and made_with[key] != here[key]:
            differences.append(f"the {key.replace('_', ' ')} changed")
    recorded = made_with.get("packages", {})
    return [*differences, *changed_keys(recorded, {name: here["packages"].get(name) for name in recorded}).values()]


@cache
def code() -> str:
    """Hash of the files in :data:`CODE`, the same under every Python.

    A commit would change with every document, and the version of the package with no change at all.
    """
    return _hash({path.relative_to(PACKAGE).as_posix(): sha256(path) for path in source_files(CODE)})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
