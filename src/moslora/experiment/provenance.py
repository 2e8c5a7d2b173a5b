"""Whether a number on disk is still the one that its run would give, up to the rounding of another machine."""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import moslora.adapters
import moslora.base
import moslora.data
import moslora.evaluation
import moslora.kernels
import moslora.mixer_options
import moslora.prompts
import moslora.recipe
import moslora.runs
import moslora.tasks
import moslora.training
from moslora.base.identity import fingerprint, packages
from moslora.base.load import load_tokenizer
from moslora.choices import FormatName, Split
from moslora.data.encode import Encoder, encoding
from moslora.data.sources import identity
from moslora.errors import MosloraError
from moslora.experiment.file import Planned
from moslora.recipe import Adapter, Changes, ModelSection, Recipe
from moslora.recipe.recipe import changed_keys
from moslora.runs.predecessor import hash_of_predecessor
from moslora.tasks import Task
from moslora.version import PACKAGE, source_files

CODE = (
    moslora.adapters,
    moslora.base,
    moslora.data,
    moslora.evaluation,
    moslora.kernels,
    moslora.mixer_options,
    moslora.prompts,
    moslora.recipe,
    moslora.runs,
    moslora.tasks,
    moslora.training,
)
"""Packages and modules whose code makes the numbers."""

REMADE: tuple[Changes, ...] = (Changes.DRAW, Changes.TRAINED, Changes.ROWS, Changes.READING)
"""What the values of a recipe change with which a run is made again. What lies at a place is in the hashes."""

WHAT = {
    "rows": "the training rows changed",
    "questions": "the questions changed",
    "base": "the base model changed",
    "start": "the adapter that it continues changed",
    "tokenizer": "the tokenizer changed",
    "chat_template": "the chat template changed",
    "code": "the code changed",
}
"""What a run may be refused for, by the keys of its provenance."""

RECORDED = (*WHAT, "packages")
"""All keys of a provenance."""


def provenance(planned: Planned) -> dict[str, Any]:
    """Everything besides its recipe that a run's numbers depend on: hashes by the keys of :data:`WHAT`, of which
    ``questions`` if it is scored; and ``packages``, the versions of those that compute."""
    recipe = planned.recipe
    found: dict[str, Any] = {
        "rows": _hash(_rows("train", recipe.training_tasks, recipe.data.source)),
        "base": fingerprint(recipe.model.name, revision=recipe.model.revision),
        "start": _start(recipe.adapter),
        **_encoding(recipe.model, recipe.data.format),
        **_program(recipe.model, recipe.adapter),
    }
    if planned.scored:
        found["questions"] = _hash(_rows("test", *recipe.questions))
    return found


def _start(adapter: Adapter) -> str | None:
    """sha256 of the weights that a run continues; ``None`` if it starts at the base."""
    if adapter.continue_from is None:
        return None
    return hash_of_predecessor(adapter.continue_from)


def _lost_start(adapter: Adapter) -> str:
    """Why the adapter that a run continues cannot be read; empty if it can."""
    try:
        _start(adapter)
    except MosloraError as error:
        return f"cannot be made again: {error}"
    return ""


def _start_differences(planned: Recipe, made: Recipe) -> list[str]:
    """Whether only one of both starts at the base. Two places may hold the same weights, which their hash tells."""
    if planned.adapter.continue_from is None or made.adapter.continue_from is None:
        return planned.differences(made, Changes.START)
    return []


def _program(base: ModelSection, adapter: Adapter) -> dict[str, Any]:
    """What computes: needs neither the base nor the rows."""
    quantized = base.quantization is not None
    return {"code": code(), "packages": packages(quantized=quantized, peft=adapter.needs_peft)}


@cache
def _encoding(model: ModelSection, format: FormatName) -> dict[str, str]:
    """Hashes of tokenizer and chat template, computed once per process."""
    return encoding(Encoder(load_tokenizer(model), max_length=None), format)


@cache
def _rows(split: Split, tasks: tuple[Task, ...], source: str) -> list[str]:
    """Hashes of the rows, computed once per process."""
    return identity(tasks, split, source=source)


def changes(
    planned: Planned, recipe: Recipe, made_with: Mapping[str, Any], *, any_code: bool, fetching: bool = True
) -> list[str]:
    """Differences between ``planned`` and a run that was made by ``recipe`` with the provenance ``made_with``.

    What the run's version did not record yet is not known to differ. ``any_code``: other code, or other versions of the
    packages that compute, are no difference. Without ``fetching``, base and rows, which may be elsewhere, are not
    looked at.
    """
    counted: tuple[Changes, ...] = REMADE
    if planned.scored:
        counted = (*REMADE, Changes.ASKED)
    found = planned.recipe.differences(recipe, *counted) + _start_differences(planned.recipe, recipe)
    if fetching:
        lost = _lost_start(planned.recipe.adapter)
        if lost:
            return [*found, lost]
        here = provenance(planned)
    else:
        here = _program(planned.recipe.model, planned.recipe.adapter)
    if any_code:
        made_with = {**made_with, "code": here["code"], "packages": here["packages"]}
    for key, text in WHAT.items():
        if key in made_with and key in here and made_with[key] != here[key]:
            found.append(text)
    recorded = made_with.get("packages", {})
    return [*found, *changed_keys(recorded, {name: here["packages"].get(name) for name in recorded}).values()]


@cache
def code() -> str:
    """Hash of the code in :data:`CODE` without comments and docstrings.

    A commit would change with every document, and the version of the package with no change at all.
    """
    parts = {}
    for path in source_files(CODE):
        parts[path.relative_to(PACKAGE).as_posix()] = without_comments(path.read_text(encoding="utf-8"))
    return _hash(parts)


def without_comments(source: str) -> str:
    """Python code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(statement: ast.AST) -> bool:
    """Whether a statement is a constant alone, such as a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
