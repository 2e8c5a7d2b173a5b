"""One training run: from a recipe to a run folder.

``recipe.yaml``  the resolved recipe          ``run.json``       versions, device, data hashes, counts
``metrics.jsonl``                             ``checkpoints/``   the newest, to go on from
``adapter/``     the result
"""

import platform
from contextlib import closing, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, inject, named_adapters
from moslora.checkpoint import AdapterFolder, check_base, save_adapter
from moslora.console import note, say
from moslora.data.encode import Encoded, Encoder
from moslora.data.steps import StepPlan, collate, label_count
from moslora.disk import DiskFull, held
from moslora.errors import Interrupted, MosloraError, UsageError
from moslora.manifest import RECIPE
from moslora.model import load_base, load_tokenizer, pad_id
from moslora.output import write_json, write_whole
from moslora.quantized import dequantize
from moslora.recipe import Recipe
from moslora.runs import RESULT, RUN
from moslora.training.budget import RankBudget
from moslora.training.folder import (
    balance,
    other_shares,
    refuse_other_data,
    refuse_other_recipe,
    refuse_other_run,
    refuse_too_many_processes,
)
from moslora.training.interrupt import StopRequest
from moslora.training.loop import Parts, train
from moslora.training.objective import LabelLoss, mean_loss
from moslora.training.optimizer import build_optimizer
from moslora.training.rows import training_data
from moslora.training.state import newest_saved, restore, save_checkpoint
from moslora.training.summary import describe
from moslora.training.tracking import Tracker

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""One process, or data parallelism with a whole model in each."""


def train_recipe(recipe: Recipe, *, out: Path, resuming: bool = False) -> Path:
    """Trains what ``recipe`` describes and returns the folder ``out/adapter``.

    Args:
        recipe: resolved.
        out: the run folder.
        resuming: go on from the newest checkpoint in ``out``; from the start where there is none yet, and not at all
            where the run is finished.

    Raises:
        UsageError: the folder holds another run or is being written, or the recipe does not fit its data or model.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        DiskFull: no room; the last checkpoint is sound.
        MosloraError: a loss or gradient is not finite, nothing was learned, or the GPU's memory does not suffice.
    """
    refuse_too_many_processes()
    accelerator = Accelerator(mixed_precision="no")  # weights, activations and the scaler are ours
    if accelerator.distributed_type not in PLAIN:
        raise UsageError(f"accelerate is set to {accelerator.distributed_type}; only plain data parallelism works here")
    with held(out) if accelerator.is_main_process else nullcontext():
        try:
            return _train(accelerator, recipe, out=out, resuming=resuming)
        except DiskFull as full:
            if not (out / RECIPE).exists():  # nothing to go on with yet
                raise
            raise DiskFull(full.path, full.reason, then=f"go on: moslora train {out} --resume") from None
        except torch.OutOfMemoryError:
            if not accelerator.is_main_process:
                raise  # the main process, which speaks for all, may know nothing of it
            same = "another objective by the gate's balance" if balance(recipe) else "the gradients stay the same"
            raise MosloraError(
                f"out of GPU memory with micro-batches of {recipe.training.micro_batch_size} rows; take a smaller"
                f" training.micro_batch_size ({same}), or model.gradient_checkpointing=true"
            ) from None


def _train(accelerator: Accelerator, recipe: Recipe, *, out: Path, resuming: bool) -> Path:
    if accelerator.is_main_process:
        refuse_other_run(out, recipe, resuming=resuming)
    accelerator.wait_for_everyone()
    saved = newest_saved(out) if resuming else None
    if saved:
        refuse_other_recipe(saved, recipe)
    if saved and saved.path.name == RESULT:
        steps = f", {done} of {done} steps" if (done := saved.manifest.get("step")) else ""  # none of an imported one
        say(f"{out}: finished{steps}; to train anew, name another folder with --out")
        return saved.path
    if resuming and not saved:
        note("no checkpoint yet; beginning at step 0")
    set_seed(recipe.seed)

    with accelerator.main_process_first():  # one process downloads and converts, the others find it done
        tokenizer = load_tokenizer(recipe.model)
        data = training_data(recipe, Encoder(tokenizer, max_length=recipe.data.max_length))
        model = load_base(recipe.model, device=accelerator.device)
    if saved:
        check_base(saved)
    adapted = adapt(model, recipe, saved)
    optimizer = build_optimizer(model, **_optimizer_arguments(recipe))
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=recipe.model.dtype == "float16")
    plan = step_plan(recipe, rows=len(data.rows))
    budget = rank_budget(model, recipe, total=len(plan))
    shared = {"trained_rows": len(data.rows), "processes": accelerator.num_processes}

    def facts(steps: int) -> dict[str, Any]:
        return {"data": data.facts(plan, steps=steps), **shared}

    first_step = 0
    if saved:
        restore(saved, model=model, optimizer=optimizer, scaler=scaler, budget=budget)
        first_step = saved.manifest["step"]
        refuse_other_data(out, then=saved.manifest["data"]["sha256"], now=data.sha256)
        say(f"resuming after step {first_step} of {len(plan)}")
        then = saved.manifest["processes"], saved.recipe.training.micro_batch_size
        now = accelerator.num_processes, recipe.training.micro_batch_size
        for line in other_shares(recipe, then=then, now=now):
            note(line)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        quantized = recipe.model.quantization is not None
        write_whole(out / RECIPE, recipe.to_yaml())
        write_json(out / RUN, {**facts(len(plan)), "steps": len(plan), **_machine(accelerator, quantized=quantized)})
    for line in (*describe(recipe, model, adapted=adapted, plan=plan), *data.remarks()):
        say(line)

    parts = Parts(
        accelerator=accelerator,
        objective=accelerator.prepare_model(LabelLoss(model)),
        optimizer=optimizer,
        scaler=scaler,
        rows=data.rows,
        plan=plan,
        pad_id=pad_id(tokenizer),
        seed=recipe.seed,
        **({"after_update": budget.update} if budget else {}),
    )
    tracker = Tracker(out, recipe, first_step=first_step, total_steps=len(plan), active=accelerator.is_main_process)

    def checkpoint(step: int) -> None:
        if accelerator.is_main_process:
            save_checkpoint(
                out,
                model=model,
                optimizer=optimizer,
                scaler=scaler,
                budget=budget,
                recipe=recipe,
                step=step,
                facts=facts(step),
            )
        accelerator.wait_for_everyone()

    def validate(step: int) -> None:
        if data.validation:
            loss = validation_loss(parts, data.validation, model, micro_batch_size=recipe.training.micro_batch_size)
            tracker.record({"step": step, "validation_loss": loss})
            say(f"step {step}/{len(plan)}  validation_loss {loss:.4f}")

    with closing(tracker), StopRequest(speaks=accelerator.is_main_process) as stop:
        done = train(
            parts,
            recipe.training,
            first_step=first_step,
            observer=tracker,
            checkpoint=checkpoint,
            validate=validate,
            stop_requested=lambda: bool(stop.signal_number),
        )
    if done < len(plan):
        raise Interrupted(
            f"stopped after step {done} of {len(plan)}; everything is saved. Go on with: moslora train {out} --resume",
            signal_number=stop.signal_number or 15,  # another process was asked, not this one
        )
    if accelerator.is_main_process:
        if not any(_moved(layer) for _, layer in named_adapters(model)):
            raise MosloraError(
                f"nothing was learned: after {done} steps every B·M·A is still zero; is training.warmup_steps"
                f" ({recipe.training.warmup_steps}) longer than the run?"
            )
        save_adapter(out / RESULT, model, recipe, facts={**facts(done), "step": done})
        say(f"adapter saved in {out / RESULT}")
    accelerator.wait_for_everyone()
    return out / RESULT


def step_plan(recipe: Recipe, *, rows: int) -> StepPlan:
    """The steps that ``recipe.training`` makes of ``rows`` training rows."""
    settings = recipe.training
    return StepPlan(
        rows=rows,
        global_batch_size=settings.global_batch_size,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=recipe.seed,
    )


def validation_loss(parts: Parts, rows: list[Encoded], model: PreTrainedModel, *, micro_batch_size: int) -> float:
    """Mean loss per label token of the validation rows, shared out over the processes."""
    accelerator = parts.accelerator
    mine = sorted(rows[accelerator.process_index :: accelerator.num_processes], key=lambda row: len(row.input_ids))
    batches = [
        collate(mine[begin : begin + micro_batch_size], pad_id=parts.pad_id, device=accelerator.device)
        for begin in range(0, len(mine), micro_batch_size)
    ]
    # The bare model: DDP's forward would wait for processes with more batches.
    share = mean_loss(LabelLoss(model), batches, labels=label_count(rows))
    total: Tensor = accelerator.reduce(torch.tensor(share, device=accelerator.device), reduction="sum")
    return float(total)


def adapt(model: PreTrainedModel, recipe: Recipe, start: AdapterFolder | None = None) -> list[str]:
    """Puts the recipe's adapters into ``model``, with the weights of ``start`` if there is one.

    Raises:
        MosloraError: ``start`` does not fit.
        UsageError: no layer matches, or the output layer does, whose weight scoring reads directly.
    """
    state = start.weights() if start else None
    try:
        adapted = inject(model, **recipe.adapter.model_dump(), seed=recipe.seed, state=state, weight_of=dequantize)
    except ValueError as error:
        if start:
            raise MosloraError(f"{start.path}: does not fit this run: {error}") from None
        raise UsageError(f"adapter: {error}") from None
    if isinstance(model.get_output_embeddings(), AdapterLinear):
        raise UsageError("adapter.target_modules: matches the output layer, which cannot be adapted; leave it out")
    return adapted


def rank_budget(model: PreTrainedModel, recipe: Recipe, *, total: int) -> RankBudget | None:
    """The recipe's rank budget over ``total`` steps; ``None`` where it has none.

    Raises:
        UsageError: it does not fit the run.
    """
    section = recipe.training.rank_budget
    if section is None:
        return None
    try:
        return RankBudget(
            model,
            target_rank=section.target_rank,
            warmup=round(section.warmup_share * total),
            final=max(1, round(section.final_share * total)),
            interval=section.interval,
            betas=section.betas,
            total=total,
        )
    except ValueError as error:
        raise UsageError(f"training.rank_budget: {error}") from None


def _moved(layer: AdapterLinear) -> bool:
    """Whether training has left the start, where ΔW = 0; a gate, which has no ΔW, starts from B = 0."""
    moved = layer.lora_b if layer.mixer.routes else layer.delta_weight()
    return bool(moved.any())


def _optimizer_arguments(recipe: Recipe) -> dict[str, Any]:
    return recipe.training.model_dump(
        include={
            "learning_rate",
            "lora_plus_ratio",
            "mixer_learning_rate",
            "weight_decay",
            "mixer_weight_decay",
            "betas",
            "eps",
        }
    )


def _machine(accelerator: Accelerator, *, quantized: bool) -> dict[str, Any]:
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": accelerator.num_processes,
        "python": platform.python_version(),
        **{name: version(name) for name in ("moslora", "torch", "transformers", "accelerate")},
        **({"bitsandbytes": version("bitsandbytes")} if quantized else {}),
    }
