"""What `tests/pretend` checks on an accelerator that is not there, in processes of their own: it stays where it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "pretend"
HALVES = (["methods"], ["device", "layers", "training", "evaluation"])
"""Of the checks, each about as long."""


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES, ids=",".join)
def test_on_a_pretend_accelerator(half: list[str]) -> None:
    files = [str(FOLDER / f"check_{name}.py") for name in half]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *files]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=False
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2_000:]


def test_no_check_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("check_*.py")} == {f"check_{name}" for half in HALVES for name in half}
