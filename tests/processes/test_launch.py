"""One command in several processes: started in any way it trains the same, stopped or killed it goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from message_kit import in_order
from moslora.errors import Interrupted, UsageError
from moslora.processes.launch import adopt_slurm, launch, processes_to_start
from moslora.recipe import TrainingSection
from moslora.training import launch as training_launch
from moslora.training import train_recipe
from training_kit import ON_A_CPU, adapter, cut_after, losses_logged, moslora, same_bits, steps_logged

CHANGES = (
    "adapter.dropout=0",
    "training.epochs=null",
    "training.max_steps=7",
    "training.checkpoint_every=2",
    "training.log_every=1",
)


@pytest.mark.slow
def test_launchers_train_the_same(recipe, world, tmp_path):
    """torchrun, `accelerate launch` and the plain command, which starts again after a kill: the same bits. One process,
    also from the middle on: the same up to the order of float32 sums."""
    command = ("train", world / "recipe.yaml", *CHANGES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "moslora"]
    torchrun += [*map(str, command), "--out", str(tmp_path / "torchrun")]
    options = {"env": os.environ | ON_A_CPU, "capture_output": True, "text": True, "timeout": 240}
    said = subprocess.run(torchrun, check=True, **options).stdout
    assert said.count("adapter saved in") == 1 and "2 processes on 1 machine" in said
    two = adapter(tmp_path / "torchrun")

    out = tmp_path / "plain"
    started = moslora(*command, "--out", out, "--processes", 2, "training.keep_checkpoints=9")
    while not (out / "checkpoints" / "step-2").exists() and started.poll() is None:
        time.sleep(0.005)
    (second,) = (child for child in psutil.Process(started.pid).children() if child.environ().get("RANK") == "1")
    second.kill()
    said, errors = started.communicate(timeout=240)
    assert started.returncode == 0 and errors == "", errors
    assert said.count("rank 1 was killed by SIGKILL") == said.count("resuming after step") == 1, said
    assert same_bits(two, adapter(out))
    assert steps_logged(out) == steps_logged(tmp_path / "torchrun")

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--mixed_precision=no", "-m", "moslora", *map(str, command), "--out", str(tmp_path / "accelerate")]
    subprocess.run(launch, check=True, capture_output=True, timeout=240)
    assert same_bits(two, adapter(tmp_path / "accelerate"))

    alone = cut_after(4, Path(shutil.copytree(out, tmp_path / "alone")))
    train_recipe(recipe(*CHANGES, "training.keep_checkpoints=9"), out=alone, resuming=True)
    train_recipe(recipe(*CHANGES), out=tmp_path / "one")
    for run in (alone, tmp_path / "one"):
        for key, value in adapter(run).items():
            assert (value - two[key]).abs().max() < 1e-3 * value.abs().max(), (run, key)
    losses = [[row["loss"] for row in losses_logged(tmp_path / run)] for run in ("one", "torchrun")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_number_of_processes_to_start(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [processes_to_start(wanted) for wanted in (None, 1, 3)] == [1, 1, 3]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [processes_to_start(wanted) for wanted in (None, 1, 3)] == [4, 1, 3]
    assert [processes_to_start(wanted, most=2) for wanted in (None, 1, 3)] == [2, 1, 3], "a step of two rows"
    assert processes_to_start(None, most=16) == 4
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # accelerate launch --num_processes 1
    assert processes_to_start(None) == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert processes_to_start(None) == processes_to_start(16) == 1
    with pytest.raises(UsageError, match=r"--processes 2: 16 .* launcher"):
        processes_to_start(2)


@pytest.mark.parametrize(
    ("cores", "said", "rows", "processes", "threads"),
    [
        (2, None, 1, 1, 2),
        (8, None, 16, 4, 2),
        (8, None, 3, 3, 2),
        (8, "1", 16, 1, 1),
        (2, "2,1", 16, 2, 1),
    ],
)
def test_workers_share_rows_and_cores(monkeypatch, cores, said, rows, processes, threads):
    """As experiments, the quickstart and a reproduction start them; OMP_NUM_THREADS is for all together."""
    started = {}
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training_launch, "launch", lambda command, **options: started.update(options) or 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    workers = training_launch.worker_processes(TrainingSection(global_batch_size=rows))
    training_launch.train_in_processes(["x.yaml"], out=Path("runs/x"), processes=workers)
    assert started["processes"] == processes
    assert started["environment"]["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(
    ("nodes", "tasks", "address", "here"),
    [
        ("gpu[03-07,12]", "8(x2)", "gpu03", "8"),
        ("gpu3,gpu4", "2,1", "gpu3", "1"),
        ("gpu-a-[3-6]", "8(x3),4", "gpu-a-3", "4"),
    ],
)
def test_srun_variables_become_torchs(nodes, tasks, address, here):
    step = {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": str(sum(int(count or 1) for count in re.findall(r"\d+(?:\(x(\d+)\))?", tasks)) - 1),
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


PROGRAM = """
import os, pathlib, signal, sys, time
folder, steps, ending = sys.argv[1:4]
if os.environ["RANK"] == "1":
    start = len(os.listdir(folder))
    pathlib.Path(folder, f"{start} {sys.argv[4:]}").touch()
    if start == int(steps):
        sys.exit()
    if ending == "reported":
        sys.exit(3)
    os.kill(*((os.getpid(), signal.SIGKILL) if ending == "killed" else (os.getppid(), signal.SIGTERM)))
    time.sleep(60)
"""
"""Rank 1 ends as it is told in each start before that number ``steps``."""


@pytest.mark.parametrize(
    ("ending", "failing", "starts", "code"),
    [
        ("killed", 2, 3, 0),
        ("killed", 4, 3, 128 + signal.SIGKILL),
        ("reported", 1, 1, 3),
        ("stopped", 1, 1, 128 + signal.SIGTERM),
    ],
)
def test_only_a_killed_process_is_started_again(tmp_path, capfd, ending, failing, starts, code):
    def run(steps_done):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(failing), ending]
        try:
            return launch(command, processes=2, then="the end", restarts=2, steps_done=steps_done)
        except Interrupted as ended:
            assert ending == "stopped" or ("rank 1 was killed" in str(ended) and "the end" in str(ended))
            return ended.exit_code

    began = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(lambda: len(os.listdir(tmp_path)) * 10) == code
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == began
    resumed = ["0 []", "1 ['--resume']", "2 ['--resume']"]
    assert sorted(os.listdir(tmp_path)) == resumed[:starts]
    said = capfd.readouterr().out
    assert [f"from step {step * 10} " in said for step in range(1, 4)] == [starts > step for step in range(1, 4)], said


def test_nothing_starts_again_without_a_new_checkpoint(tmp_path):
    with pytest.raises(Interrupted):
        launch([sys.executable, "-c", PROGRAM, str(tmp_path), "9", "killed"], processes=2, then="", restarts=2)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        ([-signal.SIGABRT, -signal.SIGKILL], ("rank 1", "SIGKILL", "memory")),
        ([None, -signal.SIGABRT], ("rank 1", "SIGABRT", "NCCL_DEBUG=INFO")),
        ([-signal.SIGBUS, None], ("rank 0", "SIGBUS", "--shm-size")),
    ],
)
def test_first_cause_is_named(monkeypatch, codes, named):
    """NCCL aborts these."""
    monkeypatch.setattr("moslora.processes.launch._run", lambda *_: (codes, False))
    with pytest.raises(Interrupted, match=in_order(*named, "the end")):
        launch(["x"], processes=2, then="the end", restarts=0)


def test_processes_without_a_row_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "9")
    with pytest.raises(UsageError, match=in_order("9 processes", "8 rows", "training.global_batch_size=9")):
        train_recipe(recipe(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
