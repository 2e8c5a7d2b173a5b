"""Words of other programs for the keys of a recipe: PEFT, the Trainer, axolotl, LLaMA-Factory, torchtune, Unsloth."""

from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, ...]] = {
    "extends=methods/lora": ("finetuning_type",),
    "name": ("run_name", "output_dir"),
    "seed": ("random_state", "data_seed"),
    "model.name": ("base_model", "model_name", "model_name_or_path", "pretrained_model_name_or_path"),
    "model.dtype": ("bf16", "fp16", "torch_dtype"),
    "model.quantization=nf4": ("load_in_4bit", "quantization_bit"),
    "model.quantization=int8": ("load_in_8bit",),
    "model.gradient_checkpointing": (
        "disable_gradient_checkpointing",
        "enable_activation_checkpointing",
        "gradient_checkpointing",
        "use_gradient_checkpointing",
    ),
    "adapter.rank": ("r", "lora_r", "lora_rank"),
    "adapter.alpha": ("lora_alpha",),
    "adapter.dropout": ("lora_dropout",),
    "adapter.target_modules": ("lora_target", "lora_target_modules", "lora_attn_modules", "apply_lora_to_mlp"),
    "adapter.target_modules=all-linear": ("lora_target_linear",),
    "adapter.scaling=rslora": ("use_rslora", "peft_use_rslora"),
    "adapter.dora": ("use_dora", "peft_use_dora"),
    "adapter.start": ("init_lora_weights", "peft_init_lora_weights"),
    "adapter.start=pissa": ("pissa_init",),
    "adapter.continue_from": ("adapter_name_or_path", "lora_model_dir"),
    "moslora train RUN --resume": ("resume_from_checkpoint",),
    "training.lora_plus_ratio": ("loraplus_lr_ratio",),
    "training.learning_rate": ("lr",),
    "training.schedule": ("lr_scheduler", "lr_scheduler_type"),
    "training.warmup_steps": ("num_warmup_steps", "warmup_ratio"),
    "training.epochs": ("num_epochs", "num_train_epochs"),
    "training.max_steps": ("max_steps_per_epoch",),
    "training.global_batch_size": (
        "batch_size",
        "gradient_accumulation_steps",
        "micro_batch_size",
        "per_device_train_batch_size",
    ),
    "training.betas": ("adam_beta1", "adam_beta2"),
    "training.eps": ("adam_epsilon",),
    "training.max_grad_norm": ("clip_grad_norm",),
    "training.strategy=fsdp": ("fsdp", "fsdp_config"),
    "training.checkpoint_every": ("save_steps",),
    "training.keep_checkpoints": ("save_total_limit",),
    "training.validate_every": ("eval_on_start", "eval_steps", "eval_strategy", "evaluation_strategy"),
    "training.validation_questions": (
        "compute_accuracy",
        "compute_metrics",
        "do_causal_lm_eval",
        "eval_causal_lm_metrics",
    ),
    "training.result=best": ("load_best_model_at_end",),
    "training.best_by": ("greater_is_better", "metric_for_best_model"),
    "training.patience": ("early_stopping_patience", "early_stopping_steps"),
    "training.log_every": ("log_every_n_steps", "logging_steps"),
    "data.source": ("dataset", "datasets", "train_dataset"),
    "data.format": ("chat_template", "template"),
    "data.max_length": ("cutoff_len", "max_seq_len", "max_seq_length", "sequence_len"),
    "data.rows": ("max_samples", "max_train_samples"),
    "data.validation_rows": ("eval_dataset", "val_set_size", "val_size"),
    "data.loss_on=all": ("train_on_inputs", "train_on_prompt"),
    "tasks.NAME.match": ("predict_with_generate",),
    "evaluation.batch_tokens": ("per_device_eval_batch_size", "eval_batch_size"),
    "tracking.to": ("report_to", "use_wandb", "use_mlflow"),
    "tracking.project": ("wandb_project", "mlflow_experiment_name"),
}
"""Our key, with a value where theirs implies one -> their words. The tables of docs/coming-from.md show most."""


def our_key(word: str, section: str) -> str | None:
    """Our key for another program's ``word``, as it is written in ``section`` (empty at the top level); ``None`` for a
    word that is nobody's."""
    for key, words in WORDS.items():
        if word in words:
            return key.removeprefix(f"{section}.")
    return None
