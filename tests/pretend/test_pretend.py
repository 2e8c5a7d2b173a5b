"""What `tests/pretend` checks on an accelerator that is not there, in processes of their own: it stays where it is."""

import os
from pathlib import Path

import pytest

from forked_kit import python

FOLDER = Path(__file__).parent
ONLY = (
    *("check_methods.py", "check_device.py", "check_layers.py", "check_pieces.py"),
    *("check_training.py", "check_evaluation.py"),
)
"""Checks for the only device of a machine."""

SECOND = "check_second.py"
"""Checks for the second device of a machine."""


def check(*files: str, **environment: str) -> None:
    command = ("-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *(FOLDER / file for file in files))
    ran = python(*command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment)
    said, errors = ran.communicate()
    assert ran.returncode == 0, said[-20_000:] + errors[-2_000:]


@pytest.mark.slow
def test_on_a_pretend_accelerator():
    check(*ONLY)


@pytest.mark.slow
def test_on_the_second_of_two():
    check(SECOND, PRETEND_DEVICE="1")


def test_no_check_is_left_out():
    assert {path.name for path in FOLDER.glob("check_*.py")} == {*ONLY, SECOND}
