"""Whole runs whose result is the best of the validated steps, and runs that patience ends. Their validation losses are
planted."""

import json
import math
import shutil

import pytest

from card_kit import Card
from message_kit import says
from methods_kit import BUDGET
from moslora.convert.export import export_peft
from moslora.errors import MosloraError
from moslora.recipe import TrainingSection, load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.best import Best, best_of, format_value
from moslora.runs.listing import table_of_runs
from moslora.runs.manifest import WEIGHTS
from moslora.runs.run import RUN, Run
from moslora.training import train_recipe
from moslora.training.checkpoints import save_checkpoint
from moslora.training.selection import Selection
from planted_kit import BEST_STEP, plant
from training_kit import (
    BEST,
    PATIENT,
    RISES,
    cut_after,
    in_processes,
    same_files,
    steps_kept,
    steps_logged,
)


@pytest.mark.parametrize(
    ("by", "values", "step", "since"),
    [
        ("loss", [], None, 0),
        ("loss", [3.0, 2.0, 2.5], 2, 1),
        ("loss", [3.0, 2.0, 2.0, 2.0], 2, 2),
        ("loss", [2.0, 3.0, 0.1 + 0.2], 3, 0),
        ("loss", [math.nan, 1 / 3], 2, 0),
        ("loss", [3.0, math.nan, math.inf], 1, 2),
        ("loss", [math.nan, math.inf], None, 2),
        ("accuracy", [0.0], 1, 0),
        ("accuracy", [0.2, 0.5, 0.5, 0.5], 2, 2),
        ("accuracy", [0.5, 0.2, 0.75], 3, 0),
    ],
)
def test_the_first_of_the_best_finite_values_is_the_best(by, values, step, since):
    """The choice is also read back to the bit."""
    best = Best(by)
    for number, value in enumerate(values, start=1):
        best = best.updated(number, value)
    assert (best.step, best.since, best.validations) == (step, since, len(values))
    assert best.value == (None if step is None else values[step - 1])
    if values:
        assert best_of(json.loads(json.dumps(best.facts, allow_nan=False))) == best
        assert by in best.facts["best"]


@pytest.mark.parametrize(
    ("step", "damaged"), [(1, False), (2, False), (BEST_STEP, False), (4, False), (6, False), (BEST_STEP, True)]
)
def test_interrupted_run_chooses_the_same(best, tmp_path, step, damaged):
    """A damaged best checkpoint is trained again."""
    run = cut_after(step, shutil.copytree(best, tmp_path / "run"))
    if damaged:
        (Run(run).checkpoint(step) / WEIGHTS).write_bytes(b"half")
    train_recipe(Run(run).recipe_to_resume(), out=run, resuming=True)
    assert same_files(best, run) and steps_logged(run) == steps_logged(best)
    assert Run(run).facts["best"] == Run(best).facts["best"]
    assert open_adapter(run / "adapter").manifest == open_adapter(best / "adapter").manifest


def losses(run):
    """Logged validation losses by step, of the steps that may be chosen."""
    found = {row["step"]: row["validation_loss"] for row in Run(run).metrics if "validation_loss" in row}
    del found[0]
    return found


def lowest(found):
    return min(found, key=found.__getitem__)


@pytest.fixture(scope="module", autouse=True)
def planted():
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        yield


@pytest.fixture(scope="module")
def best(world, tmp_path_factory):
    """Finished run with all its checkpoints. Copy it before changing it."""
    out = tmp_path_factory.mktemp("best") / "run"
    train_recipe(load_recipe(world / "recipe.yaml", [*BEST, "training.keep_checkpoints=99"]), out=out)
    return out


@pytest.fixture(scope="module")
def patient(world, tmp_path_factory):
    """Run that patience has ended, with all its checkpoints."""
    out = tmp_path_factory.mktemp("patient") / "run"
    train_recipe(load_recipe(world / "recipe.yaml", [*PATIENT, "training.keep_checkpoints=99"]), out=out)
    return out


def test_result_is_the_checkpoint_of_the_lowest_loss(best):
    found = losses(best)
    step = lowest(found)
    assert list(found) == [1, 2, 3, 4, 5, 6] and step == BEST_STEP
    result = open_adapter(Run(best).result)
    assert (result.path / WEIGHTS).read_bytes() == (Run(best).checkpoint(step) / WEIGHTS).read_bytes()
    assert result.manifest["step"] == step
    facts = Run(best).facts
    expected = {"step": step, "loss": found[step], "last_loss": found[6], "validations": 6, "since": 6 - step}
    assert facts["best"] == result.manifest["best"] == expected
    assert (facts["steps"], facts["trained_steps"], Run(best).steps_done) == (6, 6, 6)


def test_the_choice_changes_no_step(best, recipe, tmp_path):
    """A run with its last step as result has the same weights, moments and losses at each checkpoint."""
    train_recipe(recipe(*RISES, "training.keep_checkpoints=99"), out=tmp_path / "last")
    shared = 0
    for checkpoint in Run(tmp_path / "last").checkpoints:
        for file in checkpoint.glob("*.safetensors"):
            assert file.read_bytes() == (best / "checkpoints" / checkpoint.name / file.name).read_bytes()
            shared += 1
    assert shared == 6 and steps_logged(tmp_path / "last") == steps_logged(best)
    assert "best" not in Run(tmp_path / "last").facts
    assert "best" not in open_adapter(tmp_path / "last" / "adapter").manifest


@pytest.mark.parametrize("keep", [1, 2])
def test_beside_each_checkpoint_its_best_stays(best, recipe, tmp_path, monkeypatch, keep):
    """The run resumes from any checkpoint whose successors are damaged, and needs that checkpoint's best step."""
    there = []

    def listening(run, *given, **options):
        save_checkpoint(run, *given, **options)
        there.append(steps_kept(run))

    monkeypatch.setattr("moslora.training.train.save_checkpoint", listening)
    train_recipe(recipe(*BEST, f"training.keep_checkpoints={keep}"), out=tmp_path / "run")
    found = losses(best)
    written = [kept[-1] for kept in there]
    for number, kept in enumerate(there, start=1):
        newest = written[:number][-keep:]
        bests = [lowest({at: loss for at, loss in found.items() if at <= step}) for step in newest]
        assert kept == sorted({*newest, *bests})
    assert there[-1][0] == lowest(found) < there[-1][-1] == 6
    run = cut_after(6, tmp_path / "run")
    (Run(run).checkpoint(6) / WEIGHTS).write_bytes(b"half")
    train_recipe(Run(run).recipe_to_resume(), out=run, resuming=True)
    assert (run / "adapter" / WEIGHTS).read_bytes() == (best / "adapter" / WEIGHTS).read_bytes()


def test_a_checkpoint_whose_best_is_lost_is_passed_over(best, tmp_path, capsys):
    """Otherwise the run would end without a result, or with another result."""
    run = cut_after(6, shutil.copytree(best, tmp_path / "run"))
    (Run(run).checkpoint(BEST_STEP) / WEIGHTS).write_bytes(b"half")
    recipe = Run(run).recipe_to_resume()
    train_recipe(recipe, out=run, resuming=True)
    assert says(capsys.readouterr().out, "skipped", Run(run).checkpoint(BEST_STEP) / WEIGHTS)
    assert same_files(best, run)
    cut_after(6, run)
    for earlier in range(1, BEST_STEP + 1):
        shutil.rmtree(Run(run).checkpoint(earlier), ignore_errors=True)
    with pytest.raises(MosloraError, match="no intact checkpoint"):
        train_recipe(recipe, out=run, resuming=True)


def test_patience_ends_a_run_which_is_then_finished(patient, tmp_path):
    ended = BEST_STEP + 2
    assert list(losses(patient)) == [*range(1, ended + 1)] and ended < 9
    facts = Run(patient).facts
    assert (facts["steps"], facts["trained_steps"], facts["best"]["since"]) == (9, ended, 2)
    assert Run(patient).finished and Run(patient).steps_done == ended
    assert open_adapter(patient / "adapter").manifest["step"] == lowest(losses(patient)) == BEST_STEP
    for cut in (1, BEST_STEP, ended):
        run = cut_after(cut, shutil.copytree(patient, tmp_path / str(cut)))
        train_recipe(Run(run).recipe_to_resume(), out=run, resuming=True)
        assert same_files(patient, run) and steps_logged(run) == steps_logged(patient)
        assert Run(run).facts["trained_steps"] == ended


def test_patience_ends_a_run_with_the_last_result(patient, recipe, tmp_path):
    train_recipe(recipe(*PATIENT, "training.result=last"), out=tmp_path / "run")
    ended = Run(patient).facts["trained_steps"]
    result = open_adapter(tmp_path / "run" / "adapter")
    assert result.manifest["step"] == Run(tmp_path / "run").facts["trained_steps"] == ended
    newest = Run(tmp_path / "run").checkpoint(ended)
    assert (result.path / WEIGHTS).read_bytes() == (newest / WEIGHTS).read_bytes()
    assert steps_logged(tmp_path / "run") == steps_logged(patient)


def test_manifest_card_and_line_agree_on_the_best_step(patient, tmp_path):
    run = shutil.copytree(patient, tmp_path / "run")
    found = losses(run)
    (row,) = table_of_runs(run)[1:]
    assert row[3] == f"{BEST_STEP + 2}/9" and says(row[4], "finished", "patience", f"best step {BEST_STEP}")
    export_peft(run / "adapter", out=tmp_path / "peft")
    training = Card(tmp_path / "peft").section("Training")
    assert says(training, f"step {BEST_STEP}, best of ", f"{found[BEST_STEP]:.4f}", "training.patience after step")
    assert Run(run).validation_loss == found[BEST_STEP]


def test_resume_completes_an_open_card(patient, tmp_path):
    run = Run(shutil.copytree(patient, tmp_path / "run"))
    closed = run.facts
    outcome = {key: closed[key] for key in ("best", "trained_steps", "seconds", "peak_memory_gb")}
    (run.path / RUN).unlink()
    run.add_facts(**{key: fact for key, fact in closed.items() if key not in outcome})
    train_recipe(run.recipe_to_resume(), out=run.path, resuming=True)
    assert run.facts == closed


@pytest.fixture
def budget(world):
    """10 updates, of which the last entries are dropped after the eighth."""
    return lambda *overrides: load_recipe(world / "recipe.yaml", [*BUDGET, "training.validate_every=1", *overrides])


@pytest.mark.parametrize("patience", ["null", "1"])
def test_rank_budget_limits_the_candidates(budget, tmp_path, monkeypatch, patience):
    """Earlier losses are lower, as they rise with the step, but do not count."""
    plant(monkeypatch, float)
    out = tmp_path / "run"
    train_recipe(budget("training.result=best", f"training.patience={patience}"), out=out)
    facts = Run(out).facts
    assert facts["best"]["step"] == 8 and facts["best"]["validations"] == facts["trained_steps"] - 7
    assert facts["trained_steps"] == (9 if patience == "1" else 10)
    assert open_adapter(out / "adapter").manifest["step"] == 8


def test_without_a_finite_loss_there_is_no_best(recipe, tmp_path, monkeypatch):
    plant(monkeypatch, lambda step: math.nan)
    with pytest.raises(MosloraError, match="validation losses was finite"):
        train_recipe(recipe(*BEST, "training.max_steps=2"), out=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_choose_together(world, tmp_path, strategy):
    """Two processes choose alike, also after an interruption."""
    whole = tmp_path / "whole"
    changes = (*PATIENT, f"training.strategy={strategy}", "training.keep_checkpoints=99")
    in_processes("-m", "planted_kit", "train", world / "recipe.yaml", "--out", whole, *changes)
    facts = Run(whole).facts
    step = lowest(losses(whole))
    assert facts["processes"] == 2 and facts["best"]["step"] == step
    assert facts["trained_steps"] == step + 2 < 9
    again = cut_after(step, shutil.copytree(whole, tmp_path / "again"))
    in_processes("-m", "planted_kit", "train", again, "--resume")
    assert same_files(whole, again)


@pytest.mark.parametrize(
    ("best", "start", "worse", "better"), [(Best("accuracy"), 0.4, 0.2, 0.6), (Best("loss"), 4.0, 5.0, 3.0)]
)
def test_best_step_worse_than_the_start_is_remarked(best, start, worse, better):
    """The best step is the result even if it is worse than the start, which cannot be the result."""
    selection = Selection(TrainingSection(result="best"), best=best)
    assert selection.consider(2, worse)
    assert says(selection.remark(2, start=start), "the start", format_value(start, best.by))
    assert selection.remark(2, start=None) == selection.remark(2, start=worse) == "best so far"
    assert selection.consider(4, better) and selection.remark(4, start=start) == "best so far"
