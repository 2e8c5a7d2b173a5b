"""Several processes as one command: all end well, or one fault or Ctrl-C ends all."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moslora.training.launch import run_in_processes

CHILD = """
import os, pathlib, signal, sys, time
rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
folder = pathlib.Path(sys.argv[1])
if sys.argv[2] == "fail" and rank == "1":
    sys.exit(7)
if sys.argv[2] != "end":
    def saved(number, frame):
        (folder / f"saved-{rank}").touch()
        sys.exit(3)
    signal.signal(signal.SIGTERM, saved)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (folder / f"ready-{rank}").touch()
    time.sleep(60)
(folder / f"{rank}-of-{size}").write_text(os.environ["EXTRA"])
"""


def test_every_process_has_its_rank_and_the_environment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), "end"]
    assert run_in_processes(command, processes=3, environment={"EXTRA": "x"}) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"{i}-of-3": "x" for i in range(3)}


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), "fail"]
    began = time.monotonic()
    assert run_in_processes(command, processes=2, environment={"EXTRA": ""}) != 0
    assert time.monotonic() - began < 30, "nobody waited for the one that is gone"


def test_ctrl_c_lets_all_save_before_it_returns(tmp_path: Path) -> None:
    parent = (
        "import sys; from moslora.training.launch import run_in_processes\n"
        "run_in_processes(sys.argv[1:], processes=2, environment={'EXTRA': ''})"
    )
    command = [sys.executable, "-c", parent, sys.executable, "-c", CHILD, str(tmp_path), "wait"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("ready-*"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert len(list(tmp_path.glob("saved-*"))) == 2


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_main_process_speaks_of_faults(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    ran = subprocess.run(
        [sys.executable, "-m", "moslora", "train", "no-such-recipe"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ("no-such-recipe" in ran.stderr) == (rank == "0")
