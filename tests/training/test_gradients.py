"""Gradients that several processes add up, against those of torch's DistributedDataParallel."""

from pathlib import Path

import pytest

from tests.training.against_ddp import methods
from training_kit import in_processes


@pytest.mark.slow
def test_they_are_those_of_stock_ddp(world, tmp_path):
    """Of every method, ours and PEFT's, within a machine and between two. Between machines the last layers' gradients
    are sent before the backward pass has come to the first layer."""
    said = in_processes(Path(__file__).with_name("against_ddp.py"), world, tmp_path)
    for machines in (1, 2):
        for method in methods(machines):
            assert f"{method} {machines}\n" in said
