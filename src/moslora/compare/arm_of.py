"""What makes the arm of a run: runs of one arm differ only in the seed."""

import json
from collections.abc import Mapping
from typing import Any

from moslora.recipe import Changes, Recipe
from moslora.runs.lineage import predecessor_of

OF_AN_ARM = (Changes.TRAINED, Changes.ROWS)
"""What the values of a recipe change that make another arm. The base is told by its fingerprint, and the rows, wherever
they are and however they are read, by a hash of all of them."""


def arm_of(recipe: Recipe, facts: Mapping[str, Any], *, base: str | None) -> str:
    """What makes the arm of a run: every value of its recipe that changes a step, but for the seed; a hash of all rows
    of its source; its ``base``, a fingerprint if it is known; the weights that it started with; and with a gate's
    balance, which each pass takes over its own rows, what cut the passes.
    """
    values = recipe.values(*OF_AN_ARM)
    values["source"] = facts.get("data", {}).get("source_sha256")
    values["base"] = base or [recipe.model.name, recipe.model.revision]
    if recipe.adapter.continue_from is not None:
        predecessor = predecessor_of(facts)
        values["start"] = recipe.adapter.continue_from
        if predecessor is not None:
            values["start"] = predecessor.sha256
    if recipe.adapter.is_balanced:
        values["passes"] = [facts.get("processes"), facts.get("micro_batch_tokens")]
    return json.dumps(values, sort_keys=True)
