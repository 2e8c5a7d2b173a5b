"""Wrong turns: output folders, locks, disks and memory."""

import fcntl
import os
import resource
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch.distributed import DistBackendError

from cli_kit import run
from moslora.recipe import load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe

TRAIN = "train {world}/recipe.yaml --out run"
ASK = "ask {run} --question why --option a --option b"
SCORES = "runs/one/eval/choice-label-float32"


def test_an_output_folder_that_cannot_be_used(refused, here, a_run):
    (here / "f").touch()
    refused("train {world}/recipe.yaml --out f/run", "f/run")
    refused("train {world}/recipe.yaml --out /proc/x", "/proc/x")
    refused("eval {run} --out f", "f: ")
    (a_run / "recipe.yaml").unlink()
    refused("quickstart --out runs/one", "runs/one", "adapter, checkpoints")


@pytest.mark.parametrize(
    "command",
    [
        "eval {run} --limit 2",
        "verify {run} --server http://localhost:9",
        "merge {run}",
        "export {run}",
        "report {run}",
        "strength {run} --set 0.5",
        TRAIN.partition(" --out")[0],
    ],
)
def test_a_folder_in_another_runs_adapter_is_no_output(refused, a_run, command):
    Path("link").symlink_to("runs/one")
    for folder in ("runs/one/adapter/mine", "runs/one/checkpoints/mine/x", "link/adapter/mine"):
        refused(f"{command} --out {folder}", f"--out {folder}", "belongs to a run")


@pytest.mark.parametrize(
    ("command", "name", "content", "code"),
    [
        ("merge runs/one", "runs/one/eval/x/settings.json", "[]", 1),
        ("eval runs/one", f"{SCORES}/settings.json", "{", 1),
        ("eval runs/one", f"{SCORES}/predictions.jsonl", "{}", 2),
    ],
)
def test_damaged_scores(refused, a_run, command, name, content, code):
    Path(name).parent.mkdir(parents=True)
    Path(name).write_text(content)
    refused(command, *name.rsplit("/", 1), code=code)


@pytest.mark.parametrize(("command", "folder"), [(TRAIN, "run"), ("train runs/one --resume", "runs/one")])
def test_another_process_writes_there(refused, a_run, command, folder):
    """Another open file description holds the lock, as another process would."""
    Path(folder).mkdir(exist_ok=True)
    with Path(folder, ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(command, f"{folder}: ", "--out")


def test_a_lock_without_a_process_is_not_in_the_way(here, world, capsys):
    """As kill -9 leaves it, in a folder that had nothing else yet."""
    Path("run").mkdir()
    Path("run/.lock").touch()
    assert run(capsys, "train", world / "recipe.yaml", "--out", "run", "training.max_steps=3")[0] == 0
    assert Path("run/adapter/manifest.json").exists() and not Path("run/.lock").exists()


@pytest.mark.parametrize(
    ("command", "target", "names"),
    [
        (TRAIN, "training.loop.accumulate", ["training.micro_batch_tokens", "model.gradient_checkpointing=true"]),
        (TRAIN, "training.prepare.read_base", ["model.quantization=nf4", "training.strategy=fsdp"]),
        ("eval {run} --limit 2 --out e", "evaluation.model.Local.log_probabilities", ["2,048", "--batch-tokens"]),
        (ASK, "evaluation.loading.load_adapted", ["model.quantization=nf4", "CUDA_VISIBLE_DEVICES=''"]),
        (ASK, "evaluation.model.Local.log_probabilities", ["CUDA_VISIBLE_DEVICES=''"]),
    ],
)
def test_out_of_gpu_memory(refused, monkeypatch, command, target, names):
    monkeypatch.setattr(f"moslora.{target}", Mock(side_effect=torch.OutOfMemoryError))
    refused(command, *names, code=1, leaves=True)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        DistBackendError("NCCL error in: NCCLUtils.cpp:77\nLast error:\nCuda failure 2 'out of memory'"),
    ],
)
@pytest.mark.parametrize("target", ["training.loop.accumulate", "base.load.AutoModelForCausalLM.from_pretrained"])
def test_out_of_gpu_memory_in_other_words(refused, monkeypatch, target, error):
    """As cuBLAS, Triton and NCCL say it, in a step and while the base is loaded."""
    monkeypatch.setattr(f"moslora.{target}", Mock(side_effect=error))
    refused(TRAIN, "GPU", "memory", code=1, leaves=True)


@pytest.mark.parametrize(
    ("command", "target", "size", "named"),
    [
        (TRAIN, "training.prepare.adapt", 500, "run/recipe.yaml"),
        ("eval {run} --limit 2 --out e", "evaluation.journal.Journal.keep", 100, "e/predictions.jsonl"),
        ("merge {run} --out m", "convert.merge._write_weights", 50_000, "m: "),
        ("export {run} --out m", "convert.export.new_folder", 1_000, "m: "),
        ("recipes copy llama3-8b r.yaml", "recipe.load.find_recipe", 100, "r.yaml"),
    ],
)
def test_a_full_disk(refused, disk_full, command, target, size, named):
    disk_full(f"moslora.{target}", size=size)
    refused(command, named, "File too large", code=1, leaves=command.startswith("eval"))


def test_after_a_full_disk_the_last_checkpoint_is_sound_and_the_run_goes_on_to_the_same_bits(
    refused, here, trained, disk_full, monkeypatch
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    disk_full("moslora.training.train.save_checkpoint", size=9_000, call=2)
    refused(TRAIN, "run/checkpoints/step-8", "--resume", code=1, leaves=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir("run/checkpoints") == ["step-4"]
    assert open_adapter(Path("run/checkpoints/step-4")).manifest["step"] == 4
    train_recipe(load_recipe("run/recipe.yaml"), out=Path("run"), resuming=True)
    name = "adapter/adapter.safetensors"
    assert (here / "run" / name).read_bytes() == (trained / name).read_bytes()
