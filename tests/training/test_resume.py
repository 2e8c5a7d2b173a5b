"""A run that was cut or stopped resumes to the bits of one that nothing stopped."""

import shlex
import shutil
import signal
from functools import partial

import pytest

from methods_kit import METHODS, PEFT_METHODS, finish, recipe_of
from moslora.training import train_recipe
from training_kit import cut_after, in_processes, losses_logged, moslora, same_files, steps_logged

SLOW = pytest.mark.slow
CUTS = [
    *((method, 3) for method in METHODS),
    *(pytest.param(method, 6, marks=SLOW) for method in METHODS),
    *(pytest.param(method, 2, marks=SLOW) for method in PEFT_METHODS),
    ("pissa, dora, bfloat16", 3),
    ("transformers", 3),
    *(("rank budget", step) for step in (3, 6, 8, 9)),
]
"""A run and the step after which it is cut: with a rank budget in the warm-up, the descent, at the choice, after it."""


@pytest.fixture
def straight(finished, request, world, tmp_path):
    """Finished run with its checkpoints."""

    def run(name):
        if name == "rank budget":
            return request.getfixturevalue("with_budget")
        if name == "pissa, dora, bfloat16":  # where the residual of the base is rounded
            parts = ("adapter.dora=true", "model.dtype=bfloat16", "training.keep_checkpoints=9")
            return finish(recipe_of("methods/pissa", world, tmp_path, *parts), tmp_path / "straight")
        if name == "transformers":
            parts = ("model.engine=transformers", "training.keep_checkpoints=9")
            return finish(recipe_of("methods/moslora", world, tmp_path, *parts), tmp_path / "straight")
        return finished(name)

    return run


@pytest.mark.parametrize(("name", "step"), CUTS)
def test_a_run_that_was_cut_resumes_to_the_same_bits(straight, tmp_path, capsys, name, step):
    """Adapter, moments, scores and the log are equal."""
    done = straight(name)
    run = cut_after(step, shutil.copytree(done.out, tmp_path / "run"))
    capsys.readouterr()
    train_recipe(done.recipe, out=run, resuming=True)
    assert f"resuming after step {step} of " in capsys.readouterr().out
    assert same_files(done.out, run)
    assert steps_logged(run) == steps_logged(done.out)


def interrupt(step, recipe, out):
    """Interrupt with Ctrl-C as soon as that step is logged."""
    process = moslora("train", recipe, "--out", out, "training.log_every=1")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert shlex.split(errors.partition("with: ")[2]) == ["moslora", "train", str(out), "--resume"]
    assert not (out / "adapter").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(partial(interrupt, 3), id="Ctrl-C before the first planned checkpoint"),
        pytest.param(partial(interrupt, 13), id="Ctrl-C in the second epoch"),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(trained, world, tmp_path, end):
    out = tmp_path / "my runs" / "it's one"
    end(world / "recipe.yaml", out)
    resumed = moslora("train", out, "--resume", "training.log_every=2")
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert "resuming after step" in output
    assert same_files(trained, out)
    losses, again = losses_of(trained), losses_of(out)
    assert all(again[step] == loss for step, loss in losses.items())


def losses_of(run):
    return {row["step"]: row["loss"] for row in losses_logged(run)}


@pytest.mark.slow
def test_three_processes_resume_to_the_same_bits(world, tmp_path):
    """The sum of three addends depends on their order, which must be the same in a run's first step and later."""
    whole = tmp_path / "whole"
    short = ("training.epochs=null", "training.max_steps=8", "training.keep_checkpoints=9")
    in_processes("-m", "moslora", "train", world / "recipe.yaml", "--out", whole, *short, processes=3)
    again = cut_after(4, shutil.copytree(whole, tmp_path / "again"))
    in_processes("-m", "moslora", "train", again, "--resume", processes=3)
    assert len(list(whole.rglob("*.safetensors"))) == 5
    assert same_files(whole, again)
