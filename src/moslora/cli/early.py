"""Checks of names, paths and options before torch is loaded, which takes seconds."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moslora.errors import UsageError, did_you_mean
from moslora.files import near_folders

if TYPE_CHECKING:
    from moslora.cli.options import Answering
    from moslora.evaluation.target import Target
    from moslora.recipe import ModelSection, Recipe


def recipe_or_model(name: str, overrides: Sequence[str]) -> tuple["Recipe | None", "ModelSection"]:
    """Load the recipe ``name`` with its model, or else the model ``name``: a folder, the built-in one, or a hub id."""
    from moslora.base.resolve import BUILTIN
    from moslora.recipe import ModelSection, list_recipes, load_recipe

    folders = {recipe.partition("/")[0] for recipe, _ in list_recipes()}
    is_id = re.fullmatch(r"([\w.-]+)/[\w.-]+(?<!\.yaml)(?<!\.yml)", name)
    on_the_hub = is_id is not None and is_id[1] not in folders and not os.path.exists(name)
    if name == BUILTIN or on_the_hub or os.path.isfile(os.path.join(os.path.expanduser(name), "config.json")):
        if overrides:
            raise UsageError(f"{overrides[0]}: {name} is a model, and only a recipe takes overrides; leave it out")
        return None, ModelSection(name=name)
    recipe = load_recipe(name, overrides)
    return recipe, recipe.model


def refuse_evaluation(target: "Target", *, tasks: str | None, overrides: Mapping[str, Any], out: Path | None) -> None:
    """Refuse tasks or a source that cannot be used, a protocol that cannot read answers in the format of the prompts,
    and an output folder in use."""
    from moslora.data.sources import local_path, refuse_missing
    from moslora.runs.evaluation import refuse_other_scores

    source = target.request.with_overrides(overrides).source
    if "source" in overrides:  # even if no task reads it
        local_path(source)
    refuse_missing(target.tasks_to_ask(tasks), "test", source=source)
    if out is not None:
        refuse_other_scores(out)


def refuse_mixed_models(given: "Answering") -> None:
    """Refuse a server together with options of a local model, and a served model's name without a server."""
    local = given.base or given.dtype or given.engine or given.batch_tokens or given.strategy or given.processes
    if given.server and local:
        raise UsageError(
            "--server: --base, --dtype, --engine, --batch-tokens, --strategy and --processes apply only to a model on"
            " this machine; remove them, or --server"
        )
    if given.model and not given.server:
        raise UsageError(f"--model {given.model}: names a model on a server; add --server ADDRESS, or remove it")


def refuse_paths(paths: Sequence[Path], *, evaluation: str | None) -> None:
    """Refuse paths that do not exist, and runs without an evaluation, or without the evaluation of this name."""
    from moslora.runs.run import Run, is_run

    has_logs = any(path.is_file() for path in paths)  # logs are compared only with logs
    for path in paths:
        if not path.exists():
            fix = did_you_mean(near_folders(path), otherwise="moslora runs lists the runs")
            raise UsageError(f"{path}: no such file or folder; {fix}")
        if is_run(path) and not has_logs:
            Run(path).evaluation_folder(evaluation)
