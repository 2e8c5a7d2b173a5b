"""Contestants of the benchmarks: moslora's training step, PEFT's LoRA under the Trainer, and lm-eval's model."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.timing import seconds
from moslora.data.steps import StepPlan


def our_train_state(model: Any, training: Any, *, strategy: Literal["ddp", "fsdp"] = "ddp") -> Any:
    """What our loop trains with, without rows. ``training`` is the recipe's section."""
    from accelerate import Accelerator

    from moslora.data.prepared import RowTable
    from moslora.data.steps import default_micro_batch_tokens
    from moslora.processes.devices import gpus
    from moslora.training.loop import TrainState
    from moslora.training.objective import LabelLoss
    from moslora.training.optimizer import build_optimizer
    from moslora.training.prepare import distribute

    accelerator = Accelerator(mixed_precision="no", cpu=not gpus())
    return TrainState(
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


class InOrder(StepPlan):
    """Steps over all rows in their order, repeatedly."""

    def __getitem__(self, step: int) -> list[int]:
        begin = step * self.global_batch_size % self.rows
        return [*range(begin, begin + self.global_batch_size)]


def our_loop(model: Any, training: Any, rows: Sequence[Any], *, steps: int, each: int, **callbacks: Any) -> Any:
    """Function of ``first_step`` that trains on ``rows`` in their order, ``each`` in a step, by moslora's training
    loop.

    It neither validates nor saves checkpoints, unless a callback in ``callbacks`` does.
    """
    from moslora.data.prepared import RowTable
    from moslora.training.loop import train

    shown = training.model_copy(update={"global_batch_size": each, "epochs": None, "max_steps": steps})
    state = replace(our_train_state(model, shown), rows=RowTable.of(rows), plan=InOrder(shown, rows=len(rows), seed=0))
    silent = dict.fromkeys(("report", "checkpoint", "validate", "stop_requested"), lambda *_, **__: False)
    return partial(train, state, **(silent | callbacks))


def our_step(
    model: Any, training: Any, *, strategy: Literal["ddp", "fsdp"] = "ddp"
) -> Callable[[Sequence[Any]], float]:
    """Function that trains a step of moslora's loop on encoded rows and returns this process's share of the loss."""
    from moslora.processes.devices import keep_freed_memory
    from moslora.training.loop import accumulate
    from moslora.training.optimizer import update

    keep_freed_memory()  # as a training does
    state = our_train_state(model, training, strategy=strategy)

    def step(rows: Sequence[Any]) -> float:
        loss = accumulate(state, rows)
        update(state.optimizer, state.scaler, max_norm=training.max_grad_norm)
        return float(loss[0])  # as the loop does: the host waits once a step

    return step


def timed(step: Callable[[Sequence[Any]], float], steps: Sequence[Sequence[Any]]) -> tuple[list[float], list[float]]:
    """Seconds and losses of a step on each of ``steps``, except for the first, which warms up."""
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


def trainer(
    model: Any, training: Any, rows: Sequence[Any], collate: Any, *, micro_batch: int, each: int, **others: Any
) -> Any:
    """Trainer of transformers for encoded rows, ``each`` in a step, without logs and checkpoints.

    Args:
        model: model whose trainable weights are trained.
        training: the recipe's section.
        others: arguments of `transformers.TrainingArguments`.
    """
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=each // micro_batch,
        learning_rate=training.learning_rate,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **others,
    )
    return Trainer(model=model, args=arguments, train_dataset=features(rows), data_collator=collate)


def after_steps(trainer: Any, call: Callable[[], object]) -> None:
    """Make the Trainer call ``call`` at the end of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            call()

    trainer.add_callback(Clock())


def features(rows: Sequence[Any]) -> list[dict[str, list[int]]]:
    """Encoded rows as the Trainer's data set."""
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]


def padded(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Batch of the Trainer, padded on the right to a multiple of 8, shape ``(rows, length)``.

    No token sees the padding after it, so no mask is needed, and attention uses the faster kernel.
    """
    longest = max(len(row["input_ids"]) for row in batch)
    length = math.ceil(longest / 8) * 8
    found = {}
    for key, fill in (("input_ids", 0), ("labels", -100)):
        rows = [row[key] + [fill] * (length - len(row[key])) for row in batch]
        found[key] = torch.tensor(rows)
    return found


def lm_eval(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's ``hf`` model, which calls transformers' own."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def requests(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Requests of lm-eval's kind ``kind``."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, doc={}, arguments=each, idx=number) for number, each in enumerate(arguments)]


def loglikelihoods(examples: Sequence[Any]) -> list[Any]:
    """Requests of lm-eval for each option of each question, in the format ``cloze``."""
    from moslora.prompts.formats import FORMATS

    asked = []
    for example in examples:
        asked += [(option.prompt, option.answer) for option in FORMATS["cloze"].options(example)]
    return requests("loglikelihood", asked)
