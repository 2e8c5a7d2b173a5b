"""An experiment on Ray: stopped, and with a worker killed in the middle, it ends with the bytes of one run here."""

import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from experiment_kit import results, saved_of, study, trainers, two_runs
from moslora.errors import Interrupted
from moslora.experiment import on_ray as module
from moslora.experiment.on_ray import on_ray

pytest.importorskip("ray")


class InTheMiddle(threading.Thread):
    """Waits until two runs train at once and one of them has saved, which waits for the other, and stops this process;
    or until one that has saved trains, and kills its worker."""

    def __init__(self, out, *, kills):
        super().__init__(daemon=True)
        self.out, self.kills = out, kills
        self.trainer = None

    def run(self):
        while self.trainer is None:
            time.sleep(0.01)
            training = trainers()
            saved = [*saved_of(training, self.out).values()]
            if saved and (self.kills or len(training) == 2):
                self.trainer = saved[0]
            elif saved:
                saved[0].suspend()
        if self.kills:
            self.trainer.parent().kill()
        else:
            os.kill(os.getpid(), signal.SIGINT)
            self.trainer.resume()


@pytest.mark.slow
def test_bytes_are_those_of_local_runs_after_a_stop_and_a_kill(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = two_runs(world, steps=12)
    monkeypatch.setattr(module, "worker_processes", lambda training: 1)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15, below all other tests
    out = Path("rays")
    with module._cluster() as ray:  # one start of it for both
        monkeypatch.setattr(module, "_cluster", lambda: nullcontext(ray))
        stop = InTheMiddle(out, kills=False)
        stop.start()
        with pytest.raises(Interrupted):
            study("e.yaml", out, start=on_ray).run()
        assert stop.trainer is not None and not trainers() and not list(out.glob("runs/*/.lock"))
        kill = InTheMiddle(out, kills=True)
        kill.start()
        study("e.yaml", out, start=on_ray).run()
    assert kill.trainer is not None
    assert not kill.trainer.is_running() or kill.trainer.status() == psutil.STATUS_ZOMBIE, "it ended with its worker"
    assert results(out) == results(alone) and len(results(out)) == 2
