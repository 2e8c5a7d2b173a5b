"""moslora reproduce: what it says of a run that was trained again."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_kit import run as cli
from experiment_kit import train
from message_kit import in_order, says
from moslora.errors import MosloraError
from moslora.experiment.reproduce import (
    TOLERANCE,
    relative_distance,
    reproduce,
    start_of,
    verdict,
)
from moslora.recipe import load_recipe
from moslora.runs.manifest import WEIGHTS
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import adapter, same_bits, sign


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def moved(run, share):
    """Move all weights of a finished run by this share of what training changed."""
    path = run / "adapter" / WEIGHTS
    weights, start = load_file(path), start_of(Run(run).recipe)
    save_file({key: value + share * (value - start[key]) for key, value in weights.items()}, path)
    sign(path.parent)


@pytest.mark.slow
def test_a_run_is_reproduced_bit_for_bit(run, capfd, monkeypatch):
    code, said, errors = cli(capfd, "reproduce", run)
    assert code == 0, errors
    again = run.with_name("run-again")
    assert says(said.splitlines()[-1], "bitwise equal", "tensors")
    assert same_bits(adapter(run), adapter(again))
    assert Run(again).facts["hardware"] == Run(run).facts["hardware"]
    monkeypatch.setattr("moslora.experiment.reproduce.train_in_processes", train)
    code, said, errors = cli(capfd, "reproduce", run)  # again: it is there, and only compared
    assert code == 0 and "bitwise equal" in said


@pytest.mark.parametrize(("share", "code"), [(1e-3, 0), (0.1, 1)])
def test_verdict_names_the_distance(run, tmp_path, share, code):
    other = shutil.copytree(run, tmp_path / "other")
    moved(other, share)
    start = start_of(Run(run).recipe)
    if code:
        with pytest.raises(MosloraError, match=r"differ by 0\.1 of"):
            verdict(Run(run), Run(other), start=start)
    else:
        assert says(verdict(Run(run), Run(other), start=start), "not bitwise", "differ by 0.001 of")


def test_the_start_is_that_of_the_training(world, tmp_path):
    """Training at a tiny rate leaves the weights at their start, also one made from the base's weights."""
    for change in ("adapter.start=lora", "adapter.start=pissa"):
        still = ["training.max_steps=1", "training.warmup_steps=0", "training.learning_rate=1e-6"]
        mixer = "adapter.mixer={kind: dense, init: orthogonal}"
        recipe = load_recipe(world / "recipe.yaml", [*still, mixer, change])
        out = tmp_path / change
        train_recipe(recipe, out=out)
        start = start_of(recipe)
        ended = load_file(out / "adapter" / WEIGHTS)
        assert start.keys() == ended.keys()
        for key, value in ended.items():
            torch.testing.assert_close(start[key], value, rtol=0, atol=3e-6)


def test_shuffled_rows_are_found(world, tmp_path):
    """Another order of rows is found by the hash, and by the weights after a short training at a small rate."""
    shuffled = shutil.copytree(world / "data", tmp_path / "shuffled")
    for file in shuffled.glob("*/train.json"):
        rows = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(rows[::-1]), encoding="utf-8")
    short = ["training.max_steps=8", "training.warmup_steps=0", "training.learning_rate=3e-4", "adapter.dropout=0"]
    runs = {}
    for name, source in (("then", world / "data"), ("now", shuffled)):
        recipe = load_recipe(world / "recipe.yaml", [*short, f"data.source={source}"])
        train_recipe(recipe, out=tmp_path / name)
        runs[name] = Run(tmp_path / name)
    start = start_of(recipe)
    with pytest.raises(MosloraError, match="not reproduced"):
        verdict(runs["then"], runs["now"], start=start)
    before, after = (adapter(run.path) for run in runs.values())
    assert relative_distance(before, after, start=start) > 4 * TOLERANCE
    nothing = {key: torch.zeros_like(value) for key, value in before.items()}
    assert relative_distance(before, after, start=nothing) < TOLERANCE, "of ‖θ‖ it would pass"


def test_other_rows_are_refused_before_training(run):
    facts = Run(run).facts["data"]
    Run(run).add_facts(data={"sha256": "0" * 64})
    with pytest.raises(MosloraError, match="not reproduced: the training rows"):
        reproduce(Run(run), out=run.with_name("again"))
    assert not run.with_name("again").exists()
    Run(run).add_facts(data={"sha256": facts["sha256"], "tokens_sha256": "0" * 64})
    with pytest.raises(MosloraError, match=in_order("not reproduced", "tokens")):
        reproduce(Run(run), out=run.with_name("again"))
