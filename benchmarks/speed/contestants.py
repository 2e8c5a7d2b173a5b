"""A training step of this program, and of PEFT's LoRA under the Trainer of transformers."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.timing import seconds


def our_parts(model: Any, training: Any, *, strategy: Literal["ddp", "fsdp"] = "ddp") -> Any:
    """What our loop trains with, without rows. ``training`` is the recipe's section."""
    from accelerate import Accelerator

    from moslora.data.prepared import RowTable
    from moslora.data.steps import default_micro_batch_tokens
    from moslora.processes.devices import gpus, keep_freed_memory
    from moslora.training.loop import Parts
    from moslora.training.objective import LabelLoss
    from moslora.training.optimizer import build_optimizer
    from moslora.training.prepare import distribute

    keep_freed_memory()  # as a training does
    accelerator = Accelerator(mixed_precision="no", cpu=not gpus())
    return Parts(
        accelerator=accelerator,
        settings=training,
        model=model,
        objective=distribute(LabelLoss(model), accelerator, strategy).train(),
        optimizer=build_optimizer(model, training),
        scaler=torch.amp.GradScaler(enabled=False),
        rows=RowTable.of([]),
        plan=None,  # type: ignore[arg-type]  # it cuts epochs into steps, and here they are given
        micro_batch_tokens=default_micro_batch_tokens(on_gpu=accelerator.device.type != "cpu"),
    )


def our_step(
    model: Any, training: Any, *, strategy: Literal["ddp", "fsdp"] = "ddp"
) -> Callable[[Sequence[Any]], float]:
    """One step of our loop: from its rows, encoded, to this process's share of its loss."""
    from moslora.training.loop import accumulate
    from moslora.training.optimizer import update

    parts = our_parts(model, training, strategy=strategy)

    def step(rows: Sequence[Any]) -> float:
        loss = accumulate(parts, rows)
        update(parts.optimizer, parts.scaler, max_norm=training.max_grad_norm)
        return float(loss[0])  # as the loop does: the host waits once a step

    return step


def timed(step: Callable[[Sequence[Any]], float], steps: Sequence[Sequence[Any]]) -> tuple[list[float], list[float]]:
    """Seconds and losses of a step with each of these rows, but for the first, which warms up."""
    first, *counted = steps
    step(first)
    losses: list[float] = []

    def keep_loss(rows: Sequence[Any]) -> None:
        losses.append(step(rows))

    times = [seconds(partial(keep_loss, rows)) for rows in counted]
    return times, losses


def with_lora(model: Any, adapter: Any) -> Any:
    """``model`` with PEFT's LoRA of the sizes in ``adapter``, the recipe's section."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha),
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def trainer_settings(training: Any, *, rows: int, micro_batch: int, **others: Any) -> dict[str, Any]:
    """Of `transformers.TrainingArguments`, for steps of so many ``rows``, without logs and checkpoints."""
    return {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": rows // micro_batch,
        "learning_rate": training.learning_rate,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **others,
    }


def padded(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """On the right, to a multiple of 8. No token sees what is behind it, so that no mask is needed, and attention takes
    the faster kernel."""
    longest = max(len(row["input_ids"]) for row in batch)
    length = math.ceil(longest / 8) * 8
    found = {}
    for key, fill in (("input_ids", 0), ("labels", -100)):
        rows = [row[key] + [fill] * (length - len(row[key])) for row in batch]
        found[key] = torch.tensor(rows)
    return found
