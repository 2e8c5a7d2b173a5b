"""The Trainer of transformers, as an authority on the steps of a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from evaluation_kit import tokenizer
from moslora.data.encode import Encoded


def under_the_trainer(
    model: Any, rows: Sequence[Encoded], folder: Path, *, rows_per_step: int, **arguments: Any
) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step over ``rows``, in their order, four to a micro-batch."""
    settings = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=rows_per_step // 4,
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **arguments,
    )
    dataset = []
    for row in rows:
        attended = [1] * len(row.labels)
        dataset.append({"input_ids": row.input_ids, "labels": row.labels, "attention_mask": attended})
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer(), padding=True),
    )
    trainer.train()
    return [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
