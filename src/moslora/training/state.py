"""Checkpoints of a run, and how to go on from one exactly.

What a step does is a function of the weights, the optimizer's moments and (seed, step): the rows come from
:class:`moslora.data.steps.StepPlan`, the learning rate from the step, and dropout's random numbers from
:func:`seed_step`. So a checkpoint needs no generator states, and a resumed run is bitwise the straight one.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.checkpoint import AdapterFolder, load_tensors, open_adapter, save_adapter
from moslora.console import say
from moslora.errors import MosloraError, UsageError
from moslora.manifest import MANIFEST
from moslora.recipe import Recipe
from moslora.runs import RESULT, checkpoints
from moslora.training.budget import RankBudget
from moslora.training.optimizer import trainable
from moslora.training.strict import refuse_misfit

OPTIMIZER = "optimizer.safetensors"
BUDGET = "rank_budget.safetensors"


def seed_step(seed: int, *, step: int, process: int) -> None:
    """Seeds every device's default generator for one step of one process (dropout draws from it)."""
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def save_checkpoint(
    run: Path,
    *,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    budget: RankBudget | None,
    recipe: Recipe,
    step: int,
    facts: Mapping[str, Any],
) -> Path:
    """Writes ``checkpoints/step-N`` (an adapter folder with the optimizer beside the weights); drops the oldest.

    Args:
        step: optimizer updates done.
        facts: for the manifest.
    """
    folder = run / "checkpoints" / f"step-{step}"
    extra = {OPTIMIZER: _moments(model, optimizer)}
    if budget is not None:
        extra[BUDGET] = budget.state_dict()
    save_adapter(
        folder,
        model,
        recipe,
        facts={**facts, "step": step, "scaler": scaler.state_dict()},
        extra=extra,
    )
    for old in checkpoints(run)[: -recipe.training.keep_checkpoints]:
        shutil.rmtree(old)
    return folder


def newest_saved(run: Path) -> AdapterFolder | None:
    """The result of ``run``, or else its newest sound checkpoint; ``None`` where there is none yet.

    What is passed over because it is damaged is said.

    Raises:
        MosloraError: all that there is is damaged.
    """
    result = run / RESULT
    found = [*checkpoints(run), *([result] if result.is_dir() else [])]
    for path in reversed(found):
        try:
            return open_adapter(path)
        except MosloraError as error:
            if isinstance(error, UsageError) and (path / MANIFEST).is_file():
                raise  # not damaged: a newer version wrote it
            say(f"passed over: {error}")
    if found:
        raise MosloraError(f"{run}: no sound checkpoint is left; begin anew with another --out")
    return None


def restore(
    folder: AdapterFolder,
    *,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    budget: RankBudget | None,
) -> None:
    """Puts what a checkpoint keeps beside the adapter's weights into optimizer, scaler and budget.

    Raises:
        MosloraError: it does not fit this run.
    """
    try:
        _load_moments(model, optimizer, load_tensors(folder.path / OPTIMIZER))
        if budget is not None:
            budget.load_state_dict(load_tensors(folder.path / BUDGET))
    except ValueError as error:
        raise MosloraError(f"{folder.path}: does not fit this run: {error}") from None
    scaler.load_state_dict(folder.manifest["scaler"])


def _moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's tensors of every optimised parameter by ``parameter name:moment``.

    One without a gradient so far has none yet (after updates that the float16 scaler skipped, say), and gets the zeros
    with which AdamW would begin: so what is not in the file is missing.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}:{moment}": value.detach().cpu().contiguous()
        for parameter in trainable(optimizer)
        for moment, value in (optimizer.state.get(parameter) or _fresh(parameter)).items()
    }


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.zeros(()),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _load_moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Takes what :func:`_moments` gave.

    Raises:
        ValueError: moments are missing, surplus, or of another shape.
    """
    refuse_misfit(saved, _moments(model, optimizer))
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        name, _, moment = key.rpartition(":")
        parameter = parameters[name]
        # AdamW counts its steps on the CPU and keeps its moments beside the parameter.
        optimizer.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)
