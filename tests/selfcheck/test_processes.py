"""The step of two processes, which `moslora check` runs in processes of its own."""

from pathlib import Path

import pytest

from message_kit import says
from moslora.selfcheck import processes
from moslora.selfcheck.piece import said_of
from training_kit import in_processes


@pytest.mark.slow
def test_a_fault_in_one_strategy_is_found_in_that_alone(monkeypatch):
    faulty = Path(__file__).with_name("faulty_process.py")
    monkeypatch.setattr(processes, "launch", lambda command, **_: in_processes(faulty, command[-1]))
    ddp, fsdp = processes.two_processes()
    assert ddp.passed and not fsdp.passed and not fsdp.fault
    assert "ddp" in ddp.name and said_of([fsdp])[-1].endswith("training.strategy=ddp")


def test_processes_that_end_early_have_found_nothing(monkeypatch):
    def ends(*_, **__):
        return 1

    monkeypatch.setattr(processes, "launch", ends)
    found = processes.two_processes()
    assert len(found) == 2 and not any(finding.passed for finding in found)
    assert says("\n".join(said_of(found)), "above", "above", "--processes 1", "training.strategy=ddp")


def test_one_gpu_has_no_two_processes(monkeypatch):
    monkeypatch.setattr(processes, "gpus", lambda: 1)
    assert processes.two_processes() == []
