"""What `tests/pretend` checks on an accelerator that is not there, in processes of their own: it stays where it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ONLY = ("check_methods.py", "check_device.py", "check_layers.py", "check_training.py", "check_evaluation.py")
"""Checks for the only device of a machine."""

SECOND = ("check_second.py", "check_device.py", "check_layers.py", "check_training.py")
"""Checks for the second device of a machine."""


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
def test_on_a_pretend_accelerator() -> None:
    check(*ONLY)


@pytest.mark.slow
def test_on_the_second_of_two() -> None:
    check(*SECOND, PRETEND_DEVICE="1")


def test_no_check_is_left_out() -> None:
    assert {path.name for path in FOLDER.glob("check_*.py")} == {*ONLY, *SECOND}
