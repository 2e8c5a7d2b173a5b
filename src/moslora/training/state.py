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

import torch
from torch import Tensor

from moslora.errors import MosloraError, some
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import AdapterFolder, load_tensors, save_adapter
from moslora.runs.run import CHECKPOINTS, Run
from moslora.training.loop import Parts
from moslora.training.optimizer import trainable

OPTIMIZER = "optimizer.safetensors"
BUDGET = "rank_budget.safetensors"


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
        shutil.rmtree(old)


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
    there, needed = ({f"{key} {tuple(x.shape)}" for key, x in tensors.items()} for tensors in (saved, wanted))
    if there != needed:
        faults = [f"{name} is {'missing' if name in needed else 'unexpected'}" for name in sorted(there ^ needed)]
        raise MosloraError(f"{path}: does not fit this run: {some(faults)}")
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
        for moment, value in (parts.optimizer.state.get(parameter) or _fresh(parameter)).items()
    }


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
