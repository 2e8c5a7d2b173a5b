"""What is refused before torch is loaded, which takes seconds: mistyped names, paths and options."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moslora.errors import UsageError, did_you_mean
from moslora.files import near_folders

if TYPE_CHECKING:
    from moslora.evaluation.target import Target
    from moslora.recipe import ModelSection, Recipe


def recipe_or_model(name: str, overrides: Sequence[str]) -> tuple["Recipe | None", "ModelSection"]:
    """The recipe ``name`` and its model, or the model of that name, which is a folder, built in, or of the hub."""
    from moslora.base.resolve import BUILTIN
    from moslora.recipe import ModelSection, list_recipes, load_recipe

    folders = {recipe.partition("/")[0] for recipe, _ in list_recipes()}
    is_id = re.fullmatch(r"([\w.-]+)/[\w.-]+(?<!\.yaml)(?<!\.yml)", name)
    on_the_hub = is_id is not None and is_id[1] not in folders and not os.path.exists(name)
    if name == BUILTIN or on_the_hub or os.path.isfile(os.path.join(os.path.expanduser(name), "config.json")):
        if overrides:
            raise UsageError(f"{overrides[0]}: only a recipe has overrides, and {name} is a model; leave it out")
        return None, ModelSection(name=name)
    recipe = load_recipe(name, overrides)
    return recipe, recipe.model


def refuse_evaluation(target: "Target", *, tasks: str | None, typed: Mapping[str, Any], out: Path | None) -> None:
    """Refuses tasks or a source that cannot be used, a protocol that cannot read a format, and a folder in use."""
    from moslora.data.sources import local_path, refuse_missing
    from moslora.runs.evaluation import refuse_other_scores

    source = target.request.with_overrides(typed).source
    if "source" in typed:  # also where no task reads it
        local_path(source)
    refuse_missing(target.tasks_to_ask(tasks), "test", source=source)
    if out is not None:
        refuse_other_scores(out)


def refuse_mixed_models(server: str | None, model: str | None, *, here: object) -> None:
    """Refuses a server with options of a model that is loaded ``here``, and a served model without a server."""
    if (server and here) or (model and not server):
        raise UsageError(
            "with --server goes --model, and no --base, --dtype, --engine, --batch-tokens, --strategy or --processes,"
            " which are of a model loaded here; leave out what does not"
        )


def refuse_paths(paths: Sequence[Path], *, evaluation: str | None) -> None:
    """Refuses paths that are not there, and runs without an evaluation, or without the one of this name."""
    from moslora.runs.run import Run, is_run

    has_logs = any(path.is_file() for path in paths)  # which are compared with logs alone
    for path in paths:
        if not path.exists():
            fix = did_you_mean(near_folders(path), otherwise="moslora runs lists the runs")
            raise UsageError(f"{path}: no such file or folder; {fix}")
        if is_run(path) and not has_logs:
            Run(path).evaluation_folder(evaluation)
