"""Whether a number on disk is still the one that its run would give, up to the rounding of another machine."""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from moslora.base.resolve import fingerprint
from moslora.choices import Split
from moslora.data.sources import identity
from moslora.experiment.file import Planned
from moslora.recipe import Recipe
from moslora.recipe.recipe import FREE
from moslora.tasks import Task
from moslora.version import PACKAGE

COUNTED = ("adapters", "base", "data", "evaluation", "kernels", "prompts", "tasks", "training")
"""The rooms of the package whose code makes the numbers."""

PLACES = ("name", "model.name", "model.revision", "data.source", "evaluation.source")
"""Keys of a recipe that say where something lies; what lies there is in the hash of the data."""

CODE = "the code changed"


def provenance(planned: Planned) -> dict[str, str]:
    """Hashes of everything besides its recipe that a run's numbers depend on: ``rows``, of training, with the base;
    ``questions`` if it is scored; and ``code``."""
    recipe = planned.recipe
    tested = {"questions": _hash(_rows("test", *recipe.questions))} if planned.scored else {}
    return {"rows": _hash(_trained(recipe)), **tested, "code": code()}


def _trained(recipe: Recipe) -> tuple[list[str], str]:
    base = fingerprint(recipe.model.name, revision=recipe.model.revision)
    return _rows("train", recipe.training_tasks, recipe.data.source), base


@cache
def _rows(split: Split, tasks: tuple[Task, ...], source: str) -> list[str]:
    """Hashes of the rows, computed once per process."""
    return identity(tasks, split, source=source)


def changes(planned: Planned, recipe: Recipe, made_with: Mapping[str, Any], *, any_code: bool) -> list[str]:
    """Differences between ``planned`` and a run that was made by ``recipe`` with the provenance ``made_with``."""
    now, here = planned.recipe, provenance(planned)
    free = (*PLACES, *(key for key in FREE if key != "evaluation." or not planned.scored))
    what = {"rows": "the training rows or the base model changed", "questions": "the questions changed", "code": CODE}
    if "data" in made_with:  # an earlier version's hash of rows, questions and base together, also of a search
        (rows, base), tested = _trained(now), _rows("test", recipe.questions.tasks, now.questions.source)
        made_with = {**(here if made_with["data"] == _hash([rows, tested, base]) else {}), **made_with}
    return now.changes(recipe, free=free) + [
        what[key] for key in here if made_with.get(key) != here[key] and not (any_code and key == "code")
    ]


@cache
def code() -> str:
    """Hash of the code in :data:`COUNTED` without comments and docstrings, and of the libraries that compute.

    A commit would change with every document, and the version of the package with no change at all.
    """
    parts = {
        path.relative_to(PACKAGE).as_posix(): without_comments(path.read_text(encoding="utf-8"))
        for room in COUNTED
        for path in PACKAGE.glob(f"{room}/**/*.py")
    }
    return _hash([parts, version("torch"), version("transformers")])


def without_comments(source: str) -> str:
    """Python code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            kept = [part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
