"""What makes the arm of a run: runs of one arm differ only in the seed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moslora.compare.runs import ComparedRun
from moslora.recipe import Changes, Recipe
from moslora.runs.lineage import predecessor_of

OF_AN_ARM = (Changes.TRAINED, Changes.ROWS)
"""What the values of a recipe change that make another arm. The base is told by its fingerprint, and the rows, wherever
they are and however they are read, by a hash of all of them."""


def arm_of(recipe: Recipe, facts: Mapping[str, Any], *, base: str | None) -> str:
    """What makes the arm of a run: every value of its recipe that changes a step, but for the seed; its ``base``, a
    fingerprint if it is known; the weights that it started with; and with a gate's balance, which each pass takes over
    its own rows, what cut the passes.
    """
    values = recipe.values(*OF_AN_ARM)
    values["base"] = base or [recipe.model.name, recipe.model.revision]
    if recipe.adapter.continue_from is not None:
        predecessor = predecessor_of(facts)
        values["start"] = recipe.adapter.continue_from
        if predecessor is not None:
            values["start"] = predecessor.sha256
    if recipe.adapter.is_balanced:
        values["passes"] = [facts.get("processes"), facts.get("micro_batch_tokens")]
    return json.dumps(values, sort_keys=True)


def apart_by_rows(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """``runs``, with those of an arm apart if their rows are from other sources."""
    sources: dict[str, set[str]] = {}
    for run in runs:
        if run.source_hash:
            sources.setdefault(run.arm, set()).add(run.source_hash)
    several = {arm for arm, hashes in sources.items() if len(hashes) > 1}
    apart = []
    for run in runs:
        if run.arm in several:
            run = replace(run, arm=f"{run.arm} {run.source_hash}")
        apart.append(run)
    return apart
