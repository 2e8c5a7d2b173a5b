"""Keys of other programs, and what a recipe has instead: PEFT, the Trainer, TRL, axolotl, LLaMA-Factory, torchtune,
Unsloth."""

from collections.abc import Mapping, Sequence

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

NONE_HERE: Mapping[str, tuple[str, ...]] = {
    "rows always stand end to end, without padding, and each attends to itself alone": (
        "eval_packing",
        "eval_sample_packing",
        "group_by_length",
        "length_column_name",
        "neat_packing",
        "packed",
        "packing",
        "packing_strategy",
        "pad_to_multiple_of",
        "pad_to_sequence_len",
        "padding_free",
        "padding_side",
        "sample_packing",
        "train_sampling_strategy",
    ),
    "a row that is too long loses the start of its question": (
        "excess_length_strategy",
        "truncation_mode",
    ),
    "rows are always drawn in random order, by seed": ("shuffle", "shuffle_dataset", "shuffle_merged_datasets"),
    "rows are encoded once, and kept in the cache": (
        "dataloader_drop_last",
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataset_kwargs",
        "dataset_num_proc",
        "dataset_num_processes",
        "dataset_prepared_path",
        "dataset_processes",
        "overwrite_cache",
        "preprocessing_batch_size",
        "preprocessing_num_workers",
        "remove_unused_columns",
        "skip_prepare_dataset",
        "tokenized_path",
    ),
    "a row has prompt and completion, or messages (docs/data.md, Your own rows)": (
        "data_collator",
        "dataset_text_field",
        "formatting_func",
    ),
    "the loss is on the answer of each row, and the end-of-sequence token follows it": (
        "instruction_part",
        "ignore_pad_token_for_loss",
        "mask_history",
        "response_part",
        "train_on_eos",
        "train_on_eot",
    ),
    "the tokenizer is the model's own, and no token is added": (
        "added_tokens_overrides",
        "eos_token",
        "new_special_tokens",
        "pad_token",
        "processing_class",
        "resize_vocab",
        "special_tokens",
        "tokenizer",
        "tokenizer_config",
        "tokenizer_type",
        "tokens",
    ),
    "the model's class and context length are those of its config": ("base_model_config", "model_type", "rope_scaling"),
    "the optimizer is always AdamW with states in float32; set training.learning_rate, weight_decay, betas and eps": (
        "optim",
        "optim_args",
        "optim_target_modules",
        "optimizer",
        "optimizer_in_bwd",
        "use_badam",
        "use_galore",
    ),
    "training.schedule is linear, cosine or constant, and falls to zero": (
        "cosine_constant_lr_ratio",
        "cosine_min_lr_ratio",
        "lr_scheduler_kwargs",
    ),
    "the loss is cross entropy, without smoothing and without noise": (
        "label_smoothing_factor",
        "loss",
        "loss_type",
        "neftune_noise_alpha",
    ),
    "attention and kernels are chosen by the device and the model": (
        "attn_implementation",
        "compile",
        "enable_liger_kernel",
        "flash_attention",
        "flash_attn",
        "flex_attention",
        "lora_mlp_kernel",
        "lora_o_kernel",
        "lora_qkv_kernel",
        "plugins",
        "sdp_attention",
        "tf32",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "use_liger_kernel",
        "use_unsloth",
        "use_unsloth_gc",
        "xformers_attention",
    ),
    "micro-batches and checkpointing need no further settings": (
        "activation_checkpointing_kwargs",
        "activation_offloading",
        "auto_find_batch_size",
        "enable_activation_offloading",
        "gradient_checkpointing_kwargs",
    ),
    "the device is a GPU if there is one; several: docs/multi-node.md": (
        "ddp_backend",
        "ddp_find_unused_parameters",
        "ddp_timeout",
        "device",
        "device_map",
        "fsdp_version",
        "local_rank",
        "no_cuda",
        "use_cpu",
    ),
    "there is no DeepSpeed and no parallelism within a layer; training.strategy=fsdp shares the model among GPUs": (
        "context_parallel_size",
        "deepspeed",
        "sequence_parallel_degree",
        "tensor_parallel_size",
    ),
    "only the adapter learns: the base, its biases, embeddings and output layer stay frozen": (
        "additional_target",
        "apply_lora_to_output",
        "bias",
        "freeze_trainable_layers",
        "full_finetuning",
        "lora_bias",
        "lora_modules_to_save",
        "loraplus_lr_embedding",
        "modules_to_save",
        "trainable_token_indices",
        "unfrozen_parameters",
    ),
    "all layers that adapter.target_modules names get one rank and one scale": (
        "alpha_pattern",
        "exclude_modules",
        "fan_in_fan_out",
        "layers_pattern",
        "layers_to_transform",
        "lora_fan_in_fan_out",
        "lora_target_parameters",
        "peft_layers_to_transform",
        "rank_pattern",
        "target_parameters",
    ),
    "there is no such start; adapter.start is lora, pissa or svd": (
        "corda_config",
        "eva_config",
        "loftq_config",
        "lora_ga_config",
    ),
    "there is no such variant of LoRA; those that there are: docs/methods.md and docs/peft.md": (
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "layer_replication",
        "monteclora_config",
        "qalora_group_size",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    ),
    "a run is supervised fine-tuning of a causal language model": (
        "lora_task_type",
        "pref_beta",
        "pref_loss",
        "pretraining_dataset",
        "dataset_streaming",
        "rl",
        "stage",
        "streaming",
        "task_type",
    ),
    "the command says what is done: moslora train, eval, merge": ("do_predict", "do_train", "inference_mode"),
    "every checkpoint can be resumed, and none holds the base": (
        "save_adapter_weights_only",
        "save_only_model",
        "save_safetensors",
    ),
    "a run never overwrites another; give it a name of its own": ("overwrite_output_dir",),
    "after the run, moslora merge RUN writes the model (GGUF: docs/serving.md)": (
        "export_device",
        "export_dir",
        "export_legacy_format",
        "export_size",
        "maximum_memory_usage",
        "merge_lora",
        "quantization_method",
        "quantizer",
        "save_method",
    ),
    "moslora merge and export print the command that uploads their folder": (
        "hub_always_push",
        "hub_model_id",
        "hub_private_repo",
        "hub_revision",
        "hub_strategy",
        "push_to_hub",
    ),
    "loss, speed and peak memory are always printed, and written into metrics.jsonl": (
        "debug",
        "disable_tqdm",
        "include_num_input_tokens_seen",
        "log_level",
        "log_peak_memory_stats",
        "profiler",
    ),
    "a loss that is not finite ends the run": ("loss_watchdog_patience", "loss_watchdog_threshold"),
    "unknown keys are always errors": ("strict",),
    "log in with hf auth login; a token does not belong in a recipe": ("hf_hub_token", "hub_token", "token"),
    "a recipe trains; moslora merge RUN writes a model for your server (docs/serving.md)": (
        "fast_inference",
        "float8_kv_cache",
        "gpu_memory_utilization",
        "infer_backend",
        "max_lora_rank",
    ),
    "the report of a run draws its curves: moslora report RUN": ("plot_loss", "logging_dir"),
    "trackers have variables of their own, such as WANDB_ENTITY (docs/training.md, Trackers)": (
        "mlflow_tracking_uri",
        "wandb_entity",
        "wandb_log_model",
        "wandb_mode",
        "wandb_watch",
    ),
}
"""What happens here instead -> their words that no key of a recipe corresponds to."""


SECRETS = ("hf_hub_token", "hub_token", "token")
"""Words whose values no message may show."""


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
    for reason, words in NONE_HERE.items():
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
