"""An experiment on several GPUs, whose number is pretended: each has a run, whose processes see it alone."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from moslora.errors import MosloraError
from moslora.experiment import one_run
from moslora.experiment.one_run import VISIBLE, run_locally


class AtOnce:
    """Stands for `run_one`: the GPU of each run, and how many ran at once."""

    def __init__(self):
        self.gpus = {}
        self.now = []
        self.most = 0

    def __call__(self, planned, *, out, environment):
        gpu = environment[VISIBLE]
        assert gpu not in self.now, "one run on a GPU"
        self.gpus[planned.name] = gpu
        self.now.append(gpu)
        self.most = max(self.most, len(self.now))
        time.sleep(0.1)
        self.now.remove(gpu)
        if planned.name == "r3":
            raise MosloraError("r3 failed")


@pytest.mark.parametrize(("visible", "expected"), [(None, {"0", "1", "2"}), ("4,GPU-ab,7,9", {"4", "GPU-ab", "7"})])
def test_each_gpu_has_a_run_at_a_time(monkeypatch, visible, expected):
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible:
        monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setattr(one_run, "gpus", lambda: 3)
    runs = AtOnce()
    monkeypatch.setattr(one_run, "run_one", runs)
    planned = [SimpleNamespace(name=f"r{n}") for n in range(7)]
    bystander = psutil.Popen(["sleep", "60"])  # such as a tracker's process
    with run_locally(planned, out=Path("e")) as waits:
        for n, wait in enumerate(waits):
            if n != 3:
                wait()
                continue
            with pytest.raises(MosloraError, match="r3 failed"):
                wait()
    bystander.kill()
    assert bystander.wait() == -signal.SIGKILL, "only runs are stopped"
    assert runs.most == 3 and {*runs.gpus.values()} == expected and len(runs.gpus) == 7
