"""One command in several processes: started in any way it trains the same, stopped or killed it goes on."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from moslora.errors import UsageError
from moslora.processes.launch import adopt_slurm, launch, processes_to_start
from moslora.training import train_recipe
from training_kit import MakeRecipe, adapter, in_two_processes, moslora, same_bits, steps_logged

CHANGES = ("adapter.dropout=0", "training.epochs=8", "training.log_every=1")
"""84 steps."""


def rank_of(process: psutil.Process) -> str | None:
    return process.environ().get("RANK")


def test_every_launcher_trains_the_same_and_a_killed_rank_ends_all(
    recipe: MakeRecipe, world: Path, tmp_path: Path
) -> None:
    """torchrun, `accelerate launch` and the plain command, the last killed in the middle and resumed: the same bits.
    One process: the same up to the order of float32 sums."""
    command = ("train", world / "recipe.yaml", *CHANGES)
    said = in_two_processes("-m", "moslora", *command, "--out", tmp_path / "torchrun")
    assert said.count("adapter saved in") == 1 and "2 processes on 1 machine" in said
    two = adapter(tmp_path / "torchrun")

    out = tmp_path / "plain"
    started = moslora(*command, "--out", out, "--processes", 2, "training.keep_checkpoints=9")
    while not (out / "checkpoints" / "step-20").exists() and started.poll() is None:
        time.sleep(0.005)
    (second,) = (child for child in psutil.Process(started.pid).children() if rank_of(child) == "1")
    second.kill()
    killed = time.monotonic()
    _, errors = started.communicate(timeout=60)
    assert time.monotonic() - killed < 30, "nobody waited for the one that is gone"
    assert started.returncode == 128 + 9 and not (out / "adapter").exists()
    assert len(errors.splitlines()) == 1 and "rank 1 was killed by SIGKILL" in errors and "--resume" in errors, errors

    alone = Path(shutil.copytree(out, tmp_path / "alone"))
    resumed = moslora("train", out, "--resume", "--processes", 2)
    said, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0 and "resuming after step" in said and errors == ""
    assert same_bits(two, adapter(out))
    assert [row["step"] for row in steps_logged(out)] == [row["step"] for row in steps_logged(tmp_path / "torchrun")]

    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--mixed_precision=no",
    ]
    launch += ["-m", "moslora", *map(str, command), "--out", str(tmp_path / "accelerate")]
    subprocess.run(launch, check=True, capture_output=True, timeout=240)
    assert same_bits(two, adapter(tmp_path / "accelerate"))

    train_recipe(recipe(*CHANGES, "training.keep_checkpoints=9"), out=alone, resuming=True)
    train_recipe(recipe(*CHANGES), out=tmp_path / "one")
    for run in (alone, tmp_path / "one"):
        for key, value in adapter(run).items():
            assert (value - two[key]).abs().max() < 1e-3 * value.abs().max(), (run, key)
    losses = [[row["loss"] for row in steps_logged(tmp_path / run) if "loss" in row] for run in ("one", "torchrun")]
    assert losses[0][:20] == pytest.approx(losses[1][:20], rel=1e-4)


def test_one_process_per_gpu_unless_a_launcher_or_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [processes_to_start(wanted) for wanted in (None, 1, 3)] == [1, 1, 3]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [processes_to_start(wanted) for wanted in (None, 1, 3)] == [4, 1, 3]
    with pytest.raises(UsageError, match="--processes 5: this machine has 4 GPUs"):
        processes_to_start(5)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # accelerate launch --num_processes 1
    assert processes_to_start(None) == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert processes_to_start(None) == processes_to_start(16) == 1
    with pytest.raises(UsageError, match="--processes 2: a launcher has started 16 already"):
        processes_to_start(2)


@pytest.mark.parametrize(
    ("nodes", "tasks", "address", "here"),
    [
        ("gpu[03-07,12]", "8(x2)", "gpu03", "8"),
        ("gpu3,gpu4", "2,1", "gpu3", "2"),
        ("gpu-a-[1,3]", "4(x2)", "gpu-a-1", "4"),
        ("gpu7", "2", "gpu7", "2"),
    ],
)
def test_srun_says_who_a_process_is(nodes: str, tasks: str, address: str, here: str) -> None:
    step = {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_JOB_ID": "4711",
    }
    environment = step | {"MASTER_PORT": "1234"}
    adopt_slurm(environment)
    added = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": here, "MASTER_ADDR": address}
    assert environment == step | added | {"MASTER_PORT": "1234"}
    for other in (
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "16"},
        step | {"RANK": "3"},
        step | {"SLURM_STEP_NUM_TASKS": "1"},
    ):
        untouched = dict(other)
        adopt_slurm(untouched)  # a batch script, a process of torchrun, a step of one task
        assert untouched == other


FAILS = """
import os, sys, torch
from moslora import cli
from moslora.training import loop
accumulate, calls = loop.accumulate, []
def short_of_memory(*arguments):
    calls.append(0)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return accumulate(*arguments)
loop.accumulate = short_of_memory
cli.main()
"""


def test_a_rank_that_fails_tells_once_and_nobody_claims_to_save(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    command = [sys.executable, str(tmp_path / "fails.py"), "train", str(world / "recipe.yaml")]
    began = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert launch([*command, "--out", str(tmp_path / "run")], processes=2, then="") == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == began
    errors = capfd.readouterr().err
    assert errors.startswith(f"error: rank 1 on {socket.gethostname()}: out of GPU memory; "), errors
    assert len(errors.splitlines()) == 1


def test_processes_without_a_row_are_refused(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "9")
    with pytest.raises(UsageError, match=r"9 processes, but training\.global_batch_size = 8 .* start 8 at most"):
        train_recipe(recipe(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
