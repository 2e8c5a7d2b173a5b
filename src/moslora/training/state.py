"""Checkpoints of a run, and how to resume from one exactly.

A step depends only on the weights, the optimizer's moments and (seed, step): the rows come from
:class:`moslora.data.steps.StepPlan`, the learning rate from the step, and dropout's random numbers from
:func:`moslora.training.loop.seed_step`. So a checkpoint needs no generator states, and a resumed run equals the
uninterrupted one bit for bit.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moslora.adapters.injection import refuse_misfits
from moslora.console import say
from moslora.errors import MosloraError, UsageError
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import AdapterFolder, load_tensors, open_adapter, save_adapter
from moslora.runs.manifest import MANIFEST
from moslora.runs.resuming import refuse_other_recipe
from moslora.runs.run import CHECKPOINTS, Run
from moslora.training.loop import Parts
from moslora.training.optimizer import fresh_moments, trainable

OPTIMIZER = "optimizer.safetensors"
BUDGET = "rank_budget.safetensors"


def newest_saved(run: Run, recipe: Recipe) -> AdapterFolder | None:
    """The result of ``run``, or else its newest intact checkpoint, which must be of this recipe; ``None`` if there is
    none yet. That all are damaged is an error."""
    found = [*([run.result] if run.result.is_dir() else []), *reversed(run.checkpoints)]
    for path in found:
        try:
            saved = open_adapter(path)
        except MosloraError as error:
            if isinstance(error, UsageError) and (path / MANIFEST).is_file():
                raise  # not damaged, but written by a newer version
            say(f"skipped: {error}")
            continue
        refuse_other_recipe(path, then=saved.recipe, now=recipe)
        return saved
    if found:
        raise MosloraError(f"{run.path}: no intact checkpoint; start a new run with name=… or --out")
    return None


def save_checkpoint(run: Run, parts: Parts, recipe: Recipe, *, step: int, facts: Mapping[str, Any]) -> None:
    """Writes ``checkpoints/step-N``, an adapter folder with the optimizer's state, and deletes the oldest ones: first
    those of later steps, which are damaged, as the run was not resumed from them."""
    extra = {OPTIMIZER: _moments(parts)}
    if parts.budget is not None:
        extra[BUDGET] = parts.budget.state_dict()
    facts = {**facts, "step": step, "scaler": parts.scaler.state_dict()}
    folder = run.path / CHECKPOINTS / f"step-{step}"
    save_adapter(folder, parts.model, recipe, facts=facts, extra=extra)
    found = run.checkpoints
    end = found.index(folder) + 1
    for old in (*found[end:], *found[:end])[: -recipe.training.keep_checkpoints]:
        shutil.rmtree(old, ignore_errors=True)  # another program may have a file of it open


def restore(folder: AdapterFolder, parts: Parts) -> None:
    """Restores optimizer, scaler and budget from a checkpoint, which must fit this run."""
    parameters = dict(parts.model.named_parameters())
    for key, value in _load_fitting(folder.path / OPTIMIZER, _moments(parts)).items():
        name, _, moment = key.rpartition(":")
        parameter = parameters[name]
        parts.optimizer.state[parameter][moment] = value.to(parameter.device)  # the fused AdamW counts there, too
    if parts.budget is not None:
        parts.budget.load_state_dict(_load_fitting(folder.path / BUDGET, parts.budget.state_dict()))
    parts.scaler.load_state_dict(folder.manifest["scaler"])


def _load_fitting(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in ``path``, which must have exactly the keys and shapes of ``wanted``."""
    saved = load_tensors(path)
    try:
        refuse_misfits(wanted, saved)
    except ValueError as misfits:
        raise MosloraError(f"{path}: does not fit this run: {misfits}") from None
    return saved


def _moments(parts: Parts) -> dict[str, Tensor]:
    """AdamW's tensors of every optimised parameter by ``parameter name:moment``.

    A parameter that has had no gradient yet (say, after updates that the float16 scaler skipped) gets AdamW's initial
    zeros, so that every file is complete.
    """
    names = {parameter: name for name, parameter in parts.model.named_parameters()}
    return {
        f"{names[parameter]}:{moment}": value.detach().cpu().contiguous()
        for parameter in trainable(parts.optimizer)
        for moment, value in (parts.optimizer.state.get(parameter) or fresh_moments(parameter)).items()
    }
