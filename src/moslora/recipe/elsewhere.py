"""Keys of other programs, and what a recipe has instead: PEFT, the Trainer, TRL, axolotl, LLaMA-Factory, torchtune,
Unsloth."""

from collections.abc import Mapping, Sequence

from .no_counterpart import NO_COUNTERPART

WORDS: Mapping[str, tuple[str, ...]] = {
    "extends=methods/lora": ("finetuning_type", "use_peft"),
    "name": ("output_dir", "run_name", "wandb_name"),
    "seed": ("random_state", "data_seed"),
    "model.name": (
        "_component_",
        "base_model",
        "base_model_name_or_path",
        "checkpoint_dir",
        "checkpointer",
        "model_name",
        "model_name_or_path",
        "pretrained_model_name_or_path",
    ),
    "model.revision": ("base_model_revision", "model_revision"),
    "model.dtype": (
        "bf16",
        "bf16_full_eval",
        "bnb_4bit_compute_dtype",
        "compute_type",
        "fp16",
        "pure_bf16",
        "torch_dtype",
    ),
    "model.quantization=nf4": ("bnb_4bit_quant_type", "load_in_4bit", "quantization_bit", "quantize_base"),
    "model.quantization=int8": ("load_in_8bit",),
    "model.double_quantization": ("bnb_4bit_use_double_quant", "use_bnb_nested_quant"),
    "model.gradient_checkpointing": (
        "activation_checkpointing",
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
    "moslora train RUN --resume": ("auto_resume_from_checkpoints", "resume_from_checkpoint"),
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
    "training.checkpoint_every": ("save_every_n_steps", "save_steps", "save_strategy", "saves_per_epoch"),
    "training.keep_checkpoints": ("save_total_limit",),
    "training.validate_every": (
        "do_eval",
        "eval_on_start",
        "eval_steps",
        "eval_strategy",
        "evals_per_epoch",
        "evaluation_strategy",
        "run_val_every_n_steps",
    ),
    "training.validation_questions": (
        "compute_accuracy",
        "compute_metrics",
        "do_causal_lm_eval",
        "eval_causal_lm_metrics",
    ),
    "training.result=best": ("load_best_model_at_end",),
    "training.best_by": ("greater_is_better", "metric_for_best_model"),
    "training.patience": ("early_stopping_patience", "early_stopping_steps"),
    "training.log_every": ("log_every_n_steps", "logging_first_step", "logging_steps", "logging_strategy"),
    "data.source": ("data_files", "dataset", "dataset_dir", "dataset_name", "datasets", "train_dataset"),
    "data.format": ("chat_template", "chat_template_path", "template"),
    "data.max_length": ("cutoff_len", "max_seq_len", "max_seq_length", "sequence_len"),
    "data.rows": ("max_samples", "max_train_samples"),
    "data.validation_rows": (
        "dataset_test_split",
        "dataset_val",
        "eval_dataset",
        "test_datasets",
        "val_set_size",
        "val_size",
    ),
    "data.loss_on=all": ("train_on_inputs", "train_on_prompt"),
    "data.loss_on=response": (
        "assistant_only_loss",
        "completion_only_loss",
        "roles_to_train",
        "train_on_responses_only",
    ),
    "tasks.NAME.match": ("predict_with_generate",),
    "tasks.NAME.max_new_tokens": ("eval_max_new_tokens", "generation_max_length", "max_new_tokens"),
    "evaluation.batch_tokens": ("batch_size_val", "eval_batch_size", "per_device_eval_batch_size"),
    "evaluation.beams": ("eval_num_beams", "generation_num_beams", "num_beams"),
    "tracking.to": ("metric_logger", "report_to", "use_mlflow", "use_tensorboard", "use_wandb"),
    "tracking.project": ("mlflow_experiment_name", "wandb_project"),
}
"""Our key, with a value where theirs implies one -> their words. The tables of docs/coming-from.md show most."""

BY_VALUE: Mapping[str, Mapping[object, str]] = {
    "assistant_only_loss": {False: "data.loss_on=all"},
    "bf16": {True: "model.dtype=bfloat16"},
    "completion_only_loss": {False: "data.loss_on=all"},
    "disable_gradient_checkpointing": {
        True: "model.gradient_checkpointing=false",
        False: "model.gradient_checkpointing=true",
    },
    "fp16": {True: "model.dtype=float16"},
    "init_lora_weights": {True: "adapter.start=lora", "gaussian": "adapter.start=lora", "pissa": "adapter.start=pissa"},
    "load_best_model_at_end": {False: "training.result=last"},
    "load_in_4bit": {False: "model.quantization=null"},
    "load_in_8bit": {False: "model.quantization=null"},
    "lora_target": {"all": "adapter.target_modules=all-linear"},
    "lora_target_linear": {False: "adapter.target_modules"},
    "peft_use_rslora": {False: "adapter.scaling=lora"},
    "pissa_init": {False: "adapter.start=lora"},
    "quantization_bit": {4: "model.quantization=nf4", 8: "model.quantization=int8"},
    "quantization_method": {"bnb": "model.quantization=nf4", "bitsandbytes": "model.quantization=nf4"},
    "quantize_base": {False: "model.quantization=null"},
    "report_to": {
        "mlflow": "tracking.to=[mlflow]",
        "none": "tracking.to=[]",
        "tensorboard": "tracking.to=[tensorboard]",
        "trackio": "tracking.to=[trackio]",
        "wandb": "tracking.to=[wandb]",
    },
    "train_on_inputs": {False: "data.loss_on=response"},
    "train_on_prompt": {False: "data.loss_on=response"},
    "train_on_responses_only": {False: "data.loss_on=all"},
    "use_gradient_checkpointing": {"unsloth": "model.gradient_checkpointing=true"},
    "use_mlflow": {True: "tracking.to=[mlflow]", False: "tracking.to=[]"},
    "use_rslora": {False: "adapter.scaling=lora"},
    "use_tensorboard": {True: "tracking.to=[tensorboard]", False: "tracking.to=[]"},
    "use_wandb": {True: "tracking.to=[wandb]", False: "tracking.to=[]"},
}
"""Their words -> their values -> our key with the value that does the same."""

VALUES: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("eval_accuracy",),
    "bfloat16": ("bf16", "torch.bfloat16"),
    "chat": ("chat_template", "chatml", "gemma", "llama3", "mistral", "qwen", "sharegpt", "tokenizer_default"),
    "constant": ("constant_with_warmup",),
    "cosine": ("cosine_with_min_lr", "cosine_with_restarts"),
    "float16": ("fp16", "torch.float16"),
    "float32": ("fp32", "torch.float32"),
    "fsdp": ("full_shard",),
    "int8": ("8", "8bit"),
    "llm-adapters": ("alpaca",),
    "loss": ("eval_loss",),
    "lora": ("default", "gaussian"),
    "nf4": ("4", "4bit", "bitsandbytes", "bnb", "int4"),
}
"""A value of ours -> other programs' values that mean it, or are nearest to it."""

UNITS: Mapping[str, str] = {
    "data.validation_rows": "a number of rows, not a share",
    "evaluation.batch_tokens": "in tokens, not rows",
    "name": "the run's folder is runs/NAME; another: --out FOLDER",
    "training.checkpoint_every": "in steps",
    "training.global_batch_size": "all rows of a step: rows per device × accumulation × devices",
    "training.validate_every": "in steps",
    "training.warmup_steps": "a share of the run if below 1",
}
"""Our keys that count something else than theirs -> what ours count."""


def answer(word: str, value: object, section: str) -> str | None:
    """What to do about another program's ``word`` with its ``value``, written in ``section`` (empty at the top level).

    Returns:
        our key and what it counts, or why there is none; ``None`` for a word that is nobody's.
    """
    key = _our_key(word, value)
    if key is not None:
        meant = f"did you mean {key.removeprefix(f'{section}.')}?"
        unit = UNITS.get(key)
        if unit:
            meant = f"{meant} ({unit})"
        return meant
    for reason, words in NO_COUNTERPART.items():
        if word in words:
            return f"delete it: {reason}"
    return None


def our_value(value: str, choices: Sequence[str]) -> str | None:
    """That of our ``choices`` which another program calls ``value``; ``None`` if there is none."""
    for choice in choices:
        if value in VALUES.get(choice, ()):
            return choice
    return None


def _our_key(word: str, value: object) -> str | None:
    """Our key for ``word``, with our value where theirs tells it."""
    if isinstance(value, str | int):
        key = BY_VALUE.get(word, {}).get(value)
        if key is not None:
            return key
    for key, words in WORDS.items():
        if word in words:
            return key
    return None
