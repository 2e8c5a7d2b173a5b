"""Keys and values of other programs in a recipe: each is answered with ours, or with what happens instead."""

import dataclasses
import re
from pathlib import Path

import peft
import pytest
from transformers import TrainingArguments

from benchmarks.keys import with_tables
from moslora.recipe import load_recipe, trace_recipe
from moslora.recipe.faults import SECRETS
from moslora.recipe.other_programs import answer, translations
from recipe_kit import faults

UNSLOTH = """\
model_name: unsloth/Llama-3.2-1B-Instruct
max_seq_length: 2048
load_in_4bit: true
full_finetuning: false
r: 16
lora_alpha: 16
lora_dropout: 0
bias: none
use_gradient_checkpointing: unsloth
random_state: 3407
use_rslora: false
loftq_config: null
dataset_text_field: text
packing: false
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
warmup_steps: 5
max_steps: 60
learning_rate: 2e-4
logging_steps: 1
optim: adamw_8bit
weight_decay: 0.01
lr_scheduler_type: linear
output_dir: outputs
report_to: none
train_on_responses_only: true
save_method: merged_16bit
push_to_hub: true
"""
"""The arguments of Unsloth's notebooks, one a line."""

LLAMA_FACTORY = """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
"""examples/train_lora/llama3_lora_sft.yaml of LLaMA-Factory, with its section eval."""

AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
strict: false
datasets: [{path: teknium/GPT4-LLM-Cleaned, type: alpaca}]
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/lora-out
lora_model_dir:
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
pad_to_sequence_len: true
lora_r: 16
lora_fan_in_fan_out:
lora_target_modules: [gate_proj, down_proj]
wandb_project:
wandb_entity:
wandb_watch:
wandb_name:
wandb_log_model:
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
early_stopping_patience:
resume_from_checkpoint:
local_rank:
logging_steps: 1
xformers_attention:
flash_attention: true
loss_watchdog_threshold: 5.0
loss_watchdog_patience: 3
evals_per_epoch: 4
saves_per_epoch: 1
debug:
deepspeed:
weight_decay: 0.0
fsdp:
fsdp_config:
special_tokens: {pad_token: "<|end_of_text|>"}
"""
"""examples/llama-3/lora-1b.yml of axolotl, without its adapter, which tests/recipe/test_values.py has."""


SOUP = """\
base: meta-llama/Llama-3.1-8B-Instruct
task: sft
backend: unsloth
output: ./output
experiment_name: first
train: ./data/train.jsonl
val_split: 0.1
train_on_responses_only: true
lr: 2e-5
scheduler: cosine
batch_size: auto
lora: {r: 64, alpha: 16}
quantization: 4bit
"""
"""Keys of a soup.yaml, without its sections."""


@pytest.mark.parametrize("theirs", [UNSLOTH, LLAMA_FACTORY, AXOLOTL, SOUP])
def test_every_key_of_their_usual_configuration_is_answered(write, theirs):
    lines = faults(write(a=f"model: {{name: x}}\n{theirs}"))
    assert len(lines) == len(theirs.splitlines())
    assert all("did you mean " in line or "delete it: " in line for line in lines), lines


@pytest.mark.parametrize(
    ("theirs", "answered"),
    [
        ("load_in_8bit: false", "did you mean model.quantization=null?"),
        ("quantization_bit: 8", "did you mean model.quantization=int8?"),
        ("quantization_bit: [8]", "did you mean model.quantization=nf4?"),
        ("train_on_inputs: false", "did you mean data.loss_on=response?"),
        ("lora_target: all", "did you mean adapter.target_modules=all-linear?"),
        ("training: {quantization: 4bit}", "did you mean model.quantization=nf4?"),
        ("lora_target: q_proj", "did you mean adapter.target_modules?"),
        ("report_to: none", "did you mean tracking.to=[]?"),
        ("quantization_method: q4_k_m", "delete it: after the run, moslora merge RUN"),
        ("quantization_method: bnb", "did you mean model.quantization=nf4?"),
        ("val_size: 0.1", "did you mean data.validation_rows? (a number of rows; below 1"),
        ("deepspeed: ds.json", "delete it: there is no DeepSpeed"),
        ("packing: true", "delete it: rows always stand end to end"),
        ("adapter: {bias: none}", "delete it: only the adapter learns"),
        ("data: {val_size: 0.1}", "did you mean validation_rows? (a number"),
    ],
)
def test_the_answer_has_the_value_that_does_the_same(write, theirs, answered):
    (line,) = faults(write(a=f"model: {{name: x}}\n{theirs}"))
    assert f"unknown key; {answered}" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dtype=bf16", "; did you mean bfloat16?"),
        ("model.quantization=4", "; did you mean nf4?"),
        ("model.quantization=8bit", "; did you mean int8?"),
        ("data.format=llama3", "; did you mean chat?"),
        ("training.schedule=constant_with_warmup", "; did you mean constant?"),
        ("training.schedule=linea", "'linear', 'cosine' or 'constant'; did you mean linear?"),
        ("training.validate_every=0.05", "must be a whole number (in steps)"),
        ("model.gradient_checkpointing=unsloth", "must be true or false"),
        ("tracking.to=wandb", "must be a list in brackets"),
    ],
)
def test_a_value_of_theirs_is_answered_with_ours(write, override, message):
    (line,) = faults(write(a="model: {name: x}"), override)
    assert line.endswith(message)


def test_unknown_key_of_a_union_names_keys_of_its_form(write):
    (line,) = faults(write(a="model: {name: x}\ntasks: {mine: {train: a.jsonl, match: {pattern: x, takes: last}}}"))
    assert line.endswith("did you mean take?")


def test_no_token_is_shown(write):
    (line,) = faults(write(a="model: {name: x}\nhub_token: hf_secret"))
    assert "hub_token: unknown key; delete it: log in" in line and "hf_secret" not in line
    assert all(answer(word, "", "") for word in SECRETS)


def test_what_is_answered_exists():
    """Each key of ours, with its value where there is one, is a recipe's; and no word has two answers."""
    ours = {key for key, _, _ in trace_recipe("llama3.2-1b", ["extends=methods/lora"])}
    words = []
    for key, theirs in translations()["keys"].items():
        for written in re.findall(r"`([^`]+)`", " ".join(theirs.values())):
            if re.fullmatch(r"\w+(: \w+)?", written):
                words.append((written, key))
        name, equals, _ = key.partition("=")
        if name == "extends" or name.startswith(("moslora ", "tasks.NAME.")):
            continue
        assert name in ours, key
        if equals:
            load_recipe("llama3.2-1b", ["extends=methods/lora", key])
    for reason, named in translations()["instead"].items():
        words.extend((word, reason) for word in named)
    answered = dict(words)
    assert len(answered) == len({*words})
    assert {word.partition(":")[0] for word in answered} - {"adapter"} <= {*answered}


def test_the_page_has_the_keys_that_are_answered():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "coming-from.md").read_text("utf-8")
    assert page == with_tables(page), "run `make docs`"
    assert page.count("| `model.name` |") == 2


@pytest.mark.parametrize(
    ("theirs", "unanswered"),
    [
        (peft.LoraConfig, {"auto_mapping", "ensure_weight_tying", "megatron_config", "megatron_core", "peft_type"}),
        (TrainingArguments, {"ddp_static_graph", "skip_memory_metrics", "trackio_space_id"}),
    ],
)
def test_arguments_of_the_installed_versions_are_answered(theirs, unanswered):
    """Most of them: what remains is of a program's inside, or one of our own keys in another section."""
    names = {field.name for field in dataclasses.fields(theirs)}
    silent = {name for name in names if answer(name, None, "") is None}
    assert unanswered <= silent
    assert len(silent) < 0.45 * len(names), sorted(silent)
