"""Checkpoints are saved while the training goes on: what each holds, when it is waited for, and what a kill leaves."""

import signal
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from threading import Event
from typing import Any

import pytest
import torch

from methods_kit import BUDGET
from moslora.errors import Diverged, Interrupted, MosloraError
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import Run
from moslora.training import loop, session, train_recipe
from moslora.training import train as train_module
from moslora.training.checkpoints import save_checkpoint
from moslora.training.tracking import Tracker
from training_kit import BEST, same_files, steps_kept

SHORT = (
    "training.epochs=null",
    "training.max_steps=6",
    "training.checkpoint_every=2",
    "training.keep_checkpoints=9",
    "training.log_every=1",
)
KINDS = {
    "float16": ("model.dtype=float16",),
    "rank budget": (*BUDGET, "training.max_steps=6"),
    "best": (*BEST, "training.keep_checkpoints=9"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_saved_later_has_its_own_step(recipe, tmp_path, monkeypatch, kind):
    """Compared are weights, moments, averages, scaler, and the choice of the validations."""
    chosen = recipe(*SHORT, *KINDS[kind])
    train_recipe(chosen, out=tmp_path / "plain")
    is_done = defaultdict[int, Event](Event)
    step = Tracker.log_step
    saved = []

    def told(tracker, done, **values):
        step(tracker, done, **values)
        is_done[done].set()

    def late(*given, step, **options):
        assert step == 6 or is_done[step + 1].wait(60), "the training waits until it is saved"
        save_checkpoint(*given, step=step, **options)
        saved.append(step)

    monkeypatch.setattr(Tracker, "log_step", told)
    monkeypatch.setattr(train_module, "save_checkpoint", late)
    train_recipe(chosen, out=tmp_path / "late")
    assert saved == steps_kept(Run(tmp_path / "plain")) and {2, 4, 6} <= {*saved}
    assert same_files(tmp_path / "plain", tmp_path / "late")
    for one in saved:
        plain, other = (Run(run).checkpoint(one) for run in tmp_path.iterdir())
        assert open_adapter(plain).manifest == open_adapter(other).manifest


def stop(patch):
    patch.setattr(train_module, "stop_requests", lambda: nullcontext([signal.SIGTERM]))


def diverge(patch):
    """Diverge at the third step, while the second step's checkpoint is being saved."""
    norms = iter((1.0, 1.0, torch.nan))
    patch.setattr(loop, "update", lambda *given, **options: torch.tensor(next(norms)))


def nothing(patch):
    """Let the run end with a result."""


ENDS: dict[str, Any] = {
    "the result": (nothing, nullcontext(), [2, 4, 6, "result"]),
    "a stop": (stop, pytest.raises(Interrupted), [1]),
    "a fault": (diverge, pytest.raises(Diverged), [2]),
}


@pytest.mark.parametrize("end", ENDS)
def test_run_waits_for_its_last_checkpoint(recipe, tmp_path, monkeypatch, end):
    change, raises, expected = ENDS[end]
    order = []
    locked = session.locked
    save_result = train_module.Training._save_result

    def slow(*given, step, **options):
        time.sleep(0.3)
        save_checkpoint(*given, step=step, **options)
        order.append(step)

    def result(*given):
        order.append("result")
        save_result(*given)

    @contextmanager
    def noted(*given, **options):
        with locked(*given, **options):
            try:
                yield
            finally:
                order.append("unlocked")

    monkeypatch.setattr(train_module, "save_checkpoint", slow)
    monkeypatch.setattr(train_module.Training, "_save_result", result)
    monkeypatch.setattr(session, "locked", noted)
    change(monkeypatch)
    with raises:
        train_recipe(recipe(*SHORT), out=tmp_path / "run")
    assert order == [*expected, "unlocked"]


@pytest.mark.parametrize(("step", "kept"), [(2, []), (4, [2]), (6, [2, 4])])
def test_failed_save_ends_the_run(recipe, tmp_path, monkeypatch, step, kept):
    wrong = step

    def full(*given, step, **options):
        if step == wrong:
            raise MosloraError("the disk is full")
        save_checkpoint(*given, step=step, **options)

    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(MosloraError, match="the disk is full"):
        patch.setattr(train_module, "save_checkpoint", full)
        train_recipe(recipe(*SHORT), out=run.path)
    assert steps_kept(run) == kept and not run.finished
    assert max(row["step"] for row in run.metrics) == min(wrong + 2, 6)
