"""What `tests/pretend` checks on an accelerator that is not there, in processes of their own: it stays where it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
HALVES = (["methods"], ["device", "layers", "training", "evaluation"])
"""Of the checks, each about as long."""

SECOND = ("check_second.py", "check_device.py", "check_layers.py", "check_training.py")
"""Checks for the second device of a machine, too."""


def check(*files: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, *(str(FOLDER / file) for file in files)],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2_000:]


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES, ids=",".join)
def test_on_a_pretend_accelerator(half: list[str]) -> None:
    check(*(f"check_{name}.py" for name in half))


@pytest.mark.slow
def test_on_the_second_of_two() -> None:
    check(*SECOND, PRETEND_DEVICE="1")


def test_no_check_is_left_out() -> None:
    checked = {f"check_{name}.py" for half in HALVES for name in half} | {*SECOND}
    assert {path.name for path in FOLDER.glob("check_*.py")} == checked
