"""Checkpoints of a run, and how to resume from them exactly.

A step depends only on the weights, the optimizer's moments and (seed, step). The rows come from
:class:`moslora.data.steps.StepPlan`, the learning rate from the step, and dropout's random numbers from
:func:`moslora.training.loop.seed_step`. So a checkpoint needs no generator states, and a resumed run equals the
uninterrupted run bit for bit on a CPU. On a GPU they are equal as far as the same step gives the same bits twice, which
torch does not promise: docs/reproducing.md, "The same bits".
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from moslora.adapters.injection import refuse_misfits
from moslora.base.adapted import adapter_state
from moslora.errors import MosloraError
from moslora.files import discard
from moslora.recipe import Recipe, TrainingSection
from moslora.runs.adapted_model import save_adapter
from moslora.runs.adapter_folder import AdapterFolder, load_tensors
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.resuming import best_checkpoint
from moslora.runs.run import Run
from moslora.training.loop import TrainState
from moslora.training.optimizer import fresh_moments, trainable

OPTIMIZER = "optimizer.safetensors"
BUDGET = "rank_budget.safetensors"


def copied_state(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Copy a checkpoint's tensors to the host, by file name, so that training does not change them."""
    files = {WEIGHTS: adapter_state(state.model), OPTIMIZER: _moments(state)}
    if state.budget is not None:
        files[BUDGET] = state.budget.averages
    copies = {}
    for name, tensors in files.items():
        copies[name] = {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}
    return copies


def save_checkpoint(
    run: Run, files: Mapping[str, Mapping[str, Tensor]], recipe: Recipe, *, step: int, facts: Mapping[str, Any]
) -> None:
    """Write ``checkpoints/step-N``, an adapter folder with the optimizer's state, and delete old checkpoints."""
    save_adapter(run.checkpoint(step), files, recipe, facts=facts)
    delete_old_checkpoints(run, step=step, training=recipe.training)


def delete_old_checkpoints(run: Run, *, step: int, training: TrainingSection) -> None:
    """Keep the checkpoint of ``step``, the newest, the ``keep_checkpoints`` − 1 before it, and for each of these the
    one that was the best at that time.

    Checkpoints of later steps go first: they are damaged, as the run was not resumed from them.
    """
    checkpoints = run.checkpoints
    end = checkpoints.index(run.checkpoint(step)) + 1
    first_to_go = [*checkpoints[end:], *checkpoints[:end]]
    keep = training.keep_checkpoints
    # Not the newest one's best alone: if that is damaged, the run goes on from the one before.
    bests = []
    for kept in first_to_go[-keep:]:
        with suppress(MosloraError):  # a damaged one, from which the run does not go on
            bests.append(best_checkpoint(run, read_manifest(kept), training))
    for old in first_to_go[:-keep]:
        if old not in bests:
            discard(old)


def restore(folder: AdapterFolder, state: TrainState) -> None:
    """Restore optimizer, scaler, budget and selection from a checkpoint, which must fit this run."""
    parameters = dict(state.model.named_parameters())
    for key, value in _load_fitting(folder.path / OPTIMIZER, _moments(state)).items():
        name, _, moment = key.rpartition(":")
        parameter = parameters[name]
        state.optimizer.state[parameter][moment] = value.to(parameter.device)  # the fused AdamW counts there, too
    if state.budget is not None:
        averages = state.budget.averages
        for name, value in _load_fitting(folder.path / BUDGET, averages).items():
            averages[name].copy_(value)
    state.scaler.load_state_dict(folder.manifest["scaler"])
    state.selection.restore(folder.manifest)


def _load_fitting(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load the tensors in ``path``, which must have exactly the keys and shapes of ``wanted``."""
    saved = load_tensors(path)
    try:
        refuse_misfits(wanted, saved)
    except ValueError as misfits:
        raise MosloraError(f"{path}: does not fit this run: {misfits}") from None
    return saved


def _moments(state: TrainState) -> dict[str, Tensor]:
    """AdamW's tensors of every optimised parameter by ``parameter name:moment``.

    A parameter that has had no gradient yet (say, after updates that the float16 scaler skipped) gets AdamW's initial
    zeros, so that every file is complete.
    """
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    tensors = {}
    for parameter in trainable(state.optimizer):
        moments = state.optimizer.state.get(parameter)
        if not moments:
            moments = fresh_moments(parameter)
        for moment, value in moments.items():
            tensors[f"{names[parameter]}:{moment}"] = value
    return tensors
