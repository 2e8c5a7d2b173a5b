"""Checkpoints of a run, and how to go on from one exactly.

What a step does is a function of the weights, the optimizer's moments and (seed, step): the rows come from
:class:`moslora.data.steps.StepPlan`, the learning rate from the step, and dropout's random numbers from
:func:`seed_step`. So a checkpoint needs no generator states, and a resumed run is bitwise the straight one.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.adapters import load_adapter_state_dict
from moslora.checkpoint import (
    AdapterFolder,
    check_base,
    checkpoints,
    load_tensors,
    open_adapter,
    save_adapter,
)
from moslora.errors import MosloraError
from moslora.recipe import Recipe

OPTIMIZER = "optimizer.safetensors"


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
    save_adapter(
        folder,
        model,
        recipe,
        facts={**facts, "step": step, "scaler": scaler.state_dict()},
        extra={OPTIMIZER: _moments(model, optimizer)},
    )
    for old in checkpoints(run)[: -recipe.training.keep_checkpoints]:
        shutil.rmtree(old)
    return folder


def resume(
    run: Path,
    *,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    say: Callable[[str], object],
) -> AdapterFolder | None:
    """Puts the newest sound checkpoint into model, optimizer and scaler; ``None`` where there is none yet.

    Args:
        say: is told of checkpoints that are passed over because they are damaged.

    Raises:
        MosloraError: all checkpoints are damaged, or the newest sound one does not fit.
    """
    found = checkpoints(run)
    if not found:
        return None
    folder = _newest_sound(found, say)
    check_base(folder)
    try:
        load_adapter_state_dict(model, folder.weights())
        _load_moments(model, optimizer, load_tensors(folder.path / OPTIMIZER))
    except (ValueError, KeyError) as error:
        raise MosloraError(f"{folder.path}: does not fit this run: {error}") from None
    scaler.load_state_dict(folder.manifest["scaler"])
    return folder


def _newest_sound(found: list[Path], say: Callable[[str], object]) -> AdapterFolder:
    for path in reversed(found):
        try:
            return open_adapter(path)
        except MosloraError as error:
            say(f"passed over: {error}")
    raise MosloraError(f"{found[0].parent}: no sound checkpoint is left; begin anew with another --out")


def _moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by ``parameter name:moment``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}:{moment}": value.detach().cpu().contiguous()
        for parameter, moments in optimizer.state.items()
        for moment, value in moments.items()
    }


def _load_moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        name, _, moment = key.rpartition(":")
        parameter = parameters[name]
        # AdamW counts its steps on the CPU and keeps its moments beside the parameter.
        optimizer.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)
