"""What makes the arm of a run: runs of one arm differ only in the seed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moslora.compare.runs import ComparedRun
from moslora.recipe import Changes, Recipe
from moslora.recipe.changes import changes_at
from moslora.recipe.recipe import flat

OF_AN_ARM = (Changes.TRAINED, Changes.ROWS)
"""What the values of a recipe change that make another arm. The base is told by its fingerprint."""

OF_THE_ROWS = (Changes.PLACE, Changes.READING)
"""Where rows are and how they are read makes another arm only if the rows are others, which a run's card says with a
hash of all of them."""


def arm_of(recipe: Recipe, facts: Mapping[str, Any], *, base: str | None) -> str:
    """What makes the arm of a run: every value of its recipe that changes a step, but for the seed; its ``base``, a
    fingerprint if it is known; and with a gate's balance, which each pass takes over its own rows, what cut the passes.
    """
    values = recipe.values(*OF_AN_ARM)
    values["base"] = base or [recipe.model.name, recipe.model.revision]
    if recipe.adapter.is_balanced:
        values["passes"] = [facts.get("processes"), facts.get("micro_batch_tokens")]
    return json.dumps(values, sort_keys=True)


def apart_by_rows(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """``runs``, with those of an arm apart if their rows are from other sources. Where that was not recorded, of
    earlier versions, they are apart by the places of their rows if under one seed, which chooses among them,
    other rows were trained."""
    sources: dict[str, set[str]] = {}
    trained: dict[tuple[str, int | None], set[str | None]] = {}
    for run in runs:
        trained.setdefault((run.arm, run.seed), set()).add(run.facts.get("data", {}).get("sha256"))
        if run.source_hash:
            sources.setdefault(run.arm, set()).add(run.source_hash)
    several_sources = {arm for arm, hashes in sources.items() if len(hashes) > 1}
    several_rows = {arm for (arm, _), hashes in trained.items() if len(hashes) > 1}
    apart = []
    for run in runs:
        arm = run.arm
        if arm in several_sources:
            arm = f"{arm} {run.source_hash}"
        elif arm in several_rows:
            arm += _places_of_rows(run)
        apart.append(replace(run, arm=arm))
    return apart


def _places_of_rows(run: ComparedRun) -> str:
    values = flat(run.recipe or {})
    places = {key: value for key, value in values.items() if changes_at(Recipe, key) in OF_THE_ROWS}
    return json.dumps(places, sort_keys=True)
