"""An experiment on several GPUs, whose number is pretended: each has a run, whose processes see it alone."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from experiment_kit import results, saved_of, study, trainers, two_runs
from message_kit import says
from moslora.errors import Interrupted, MosloraError
from moslora.experiment import one_run
from moslora.experiment.one_run import VISIBLE, here

Run = Callable[..., None]


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
def test_as_many_runs_at_once_as_gpus_each_on_its_own(monkeypatch, visible, expected):
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible:
        monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setattr(one_run, "gpus", lambda: 3)
    runs = AtOnce()
    monkeypatch.setattr(one_run, "run_one", runs)
    planned = [SimpleNamespace(name=f"r{n}") for n in range(7)]
    bystander = psutil.Popen(["sleep", "60"])  # such as a tracker's process
    with here(planned, out=Path("e")) as waits:
        for n, wait in enumerate(waits):
            if n != 3:
                wait()
                continue
            with pytest.raises(MosloraError, match="r3 failed"):
                wait()
    bystander.kill()
    assert bystander.wait() == -signal.SIGKILL, "only runs are stopped"
    assert runs.most == 3 and {*runs.gpus.values()} == expected and len(runs.gpus) == 7


class StopsBoth(threading.Thread):
    """Waits until two runs train at once and have saved, and stops this process. The first waits for the other."""

    def __init__(self, out):
        super().__init__(daemon=True)
        self.out = out
        self.seen = {}  # run -> the GPU that the process sees which trains it

    def run(self):
        saved = {}
        while len(saved) < 2:
            time.sleep(0.01)
            training = trainers()
            with suppress(psutil.Error, KeyError):  # one has just ended, or begun
                self.seen = {name: process.environ()[VISIBLE] for name, process in training.items()}
            saved = saved_of(training, self.out)
            for process in saved.values():
                process.suspend()
        os.kill(os.getpid(), signal.SIGINT)
        for process in saved.values():
            process.resume()


@pytest.mark.slow
def test_stopped_and_continued_it_gives_the_bytes_of_one_run_after_the_other(world, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    alone = two_runs(world, steps=12)
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(one_run, "gpus", lambda: 2)
    out = Path("two")
    stop = StopsBoth(out)
    stop.start()
    capfd.readouterr()
    with pytest.raises(Interrupted):
        study("e.yaml", out).run()
    assert {*stop.seen.values()} == {"0", "1"}
    assert not trainers() and not list(out.glob("runs/*/.lock"))
    study("e.yaml", out).run()
    assert results(out) == results(alone) and len(results(out)) == 2
    said = capfd.readouterr().out
    assert says(said, "lora-0.03-0: ") and "\x1b" not in said
