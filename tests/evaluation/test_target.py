"""Targets of `moslora eval`: a run, its base and its merged model are asked the same, and nothing in vain."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from card_kit import Card
from cli_kit import run
from evaluation_kit import read_results
from message_kit import says
from moslora.convert.merge import merge
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.runs.evaluation import read_evaluation
from moslora.runs.manifest import read_manifest
from moslora.runs.run import Run
from moslora.training import train_recipe


def test_run_and_merged_model_are_asked_the_same_questions(recipe, world, tmp_path, monkeypatch):
    """The limit of the training rows cuts no question: every one here is longer."""
    train_recipe(recipe("data.max_length=24", "training.max_steps=6"), out=tmp_path / "run")
    merge(tmp_path / "run" / "adapter", out=tmp_path / "merged")
    monkeypatch.chdir(tmp_path)
    targets = [open_target("run"), open_target("merged", dtype="float32"), open_target("run", base=True)]
    asked = {"source": str(world / "data"), "tasks": ("obqa",)}
    runs, merged, base = (evaluate_target(target, **asked)[0] for target in targets)
    assert {results.conditions.max_length for results in (runs, merged, base)} == {512}, "the model's context"
    assert not any(prediction.truncated for results in (runs, merged, base) for prediction in results.predictions)
    theirs = {prediction.id: prediction.scores for prediction in merged.predictions}
    for prediction in runs.predictions:
        assert prediction.scores == pytest.approx(theirs[prediction.id], abs=1e-4)


def test_remarks_on_unfinished_runs_and_missing_recipes(trained, world, tmp_path, capsys):
    copy = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(copy / "adapter")
    few = ("--tasks", "obqa", "--limit", "2")
    of_model = (*few, "--source", world / "data", "--out")
    for target, options, unfinished, no_recipe in (
        (trained, (*few, "--out", tmp_path / "finished"), False, False),
        (copy, few, True, False),
        (copy / "checkpoints" / "step-21", few, False, False),
        (copy, (*few, "--base"), False, False),
        (world / "model", (*of_model, tmp_path / "one"), False, True),
        (world / "model", (*of_model, tmp_path / "two", "--protocol", "choice"), False, False),
    ):
        code, said, _ = run(capsys, "eval", target, *options)
        assert code == 0 and says(said, "is unfinished: scoring step 21 of 21") == unfinished
        assert says(said, "no recipe says how to ask this model", "choice") == no_recipe
        assert "not trained for" not in said
    code, said, _ = run(capsys, "eval", trained, *few, "--out", tmp_path / "cloze", "--protocol", "cloze")
    assert code == 0 and says(said, "protocol cloze cannot read format label", "which this model was not trained for")


def weights(adapter):
    return {read_manifest(adapter)["sha256"]["adapter.safetensors"]}


@pytest.mark.parametrize(
    ("inside", "typed", "step"),
    [
        ("run/checkpoints", "./step-15/", 15),
        ("run/adapter", "../checkpoints/step-15", 15),
        (".", "link", 15),
        (".", "folder/step-15", 15),
        ("other", "adapter", 15),
        ("run/checkpoints", ".", 21),
        (".", "folder", 21),
    ],
)
def test_checkpoint_is_found_by_every_path(trained, tmp_path, monkeypatch, capsys, inside, typed, step):
    """A folder of checkpoints means the newest."""
    copy = shutil.copytree(trained, tmp_path / "run")
    oldest = (copy / "checkpoints" / "step-20").rename(copy / "checkpoints" / "step-15")
    (tmp_path / "link").symlink_to(oldest)
    (tmp_path / "folder").symlink_to(copy / "checkpoints")
    other = shutil.copytree(trained, tmp_path / "other")
    shutil.rmtree(other / "adapter")
    (other / "adapter").symlink_to(oldest)
    monkeypatch.chdir(tmp_path / inside)
    assert run(capsys, "eval", typed, "--tasks", "obqa", "--limit", "2")[0] == 0
    (folder,) = (copy / "eval").iterdir()
    assert folder.name == f"choice-label-float32-step-{step}" and not (other / "eval").exists()
    of_weights = read_manifest(copy / "checkpoints" / f"step-{step}")["sha256"]["adapter.safetensors"]
    assert read_evaluation(folder).weights.adapter == of_weights


def test_out_in_a_run_must_name_its_weights(trained, tmp_path, capsys):
    copy = shutil.copytree(trained, tmp_path / "run")
    options = ("--tasks", "obqa", "--limit", "2", "--out")
    checkpoint = copy / "checkpoints" / "step-21"
    for target, name in (([checkpoint], "mine"), ([copy, "--base"], "mine-step-21"), ([copy], "mine-base")):
        code, _, err = run(capsys, "eval", *target, *options, copy / "eval" / name)
        assert code == 2 and "other weights" in err and not (copy / "eval" / name).exists()
    assert run(capsys, "eval", checkpoint, *options, copy / "eval" / "mine-step-21")[0] == 0
    assert run(capsys, "eval", copy, *options, copy / "eval" / "mine")[0] == 0


def test_mistyped_path_names_near_ones(trained, tmp_path, monkeypatch, capsys):
    """Nothing asks the hub."""
    monkeypatch.setattr("moslora.base.resolve._ask_hub", lambda *_: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    for place in ("runs/caps", "mine/caps"):
        shutil.copytree(trained, tmp_path / place)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    for command, typed, *named in (
        ("eval", "runs/cpas", "did you mean runs/caps?"),
        ("merge", "rnus/cap/", "did you mean runs/caps?"),
        ("eval", "mine/cpas/", "did you mean mine/caps?"),
        ("eval", "thiers", "did you mean theirs?"),
        ("eval", "runs/caps/checkpoints/step-99", "did you mean", "step-21", "step-20"),
        ("eval", "mine/nothing", "no such folder"),
        ("eval", "no/such/folder", "no such folder"),
        ("eval", "theirs/adapter_config.json", "a file, not a model"),
        ("eval", "smollm2-135m", "a recipe, not a model", "train smollm2-135m", "smollm2-135m-instruct"),
    ):
        code, _, error = run(capsys, command, typed)
        assert code == 2 and says(error, *named), typed


def test_the_newest_run_may_lie_in_the_current_folder(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "eval", "--tasks", "obqa", "--limit", "2")
    assert code == 0 and out.startswith("newest run: mine\n") and "written to mine/eval/choice-label-float32" in out


def test_run_does_not_depend_on_its_folder(recipe, world, tmp_path, monkeypatch, capsys):
    """Nor do its base and its checkpoints; it is resumed by the recipe with relative paths."""
    monkeypatch.chdir(world)
    typed = ("data.source=./data", "evaluation.source=data/../data", "model.name=model", "training.max_steps=3")
    train_recipe(recipe(*typed), out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    train_recipe(recipe(*typed), out=tmp_path / "run", resuming=True)
    monkeypatch.chdir(tmp_path)
    for target in (["run"], ["run/checkpoints/step-3"], ["run", "--base"]):
        assert run(capsys, "eval", *target, "--tasks", "obqa", "--limit", "2")[0] == 0
    stored = Run(Path("run")).recipe
    assert (stored.data.source, stored.model.name) == (str(world / "data"), str(world / "model"))


def test_a_limit_cuts_and_says_so(recipe, tmp_path, capsys):
    """The recipe's, and a typed one in its place."""
    train_recipe(recipe("evaluation.max_length=24", "training.max_steps=3"), out=tmp_path / "run")
    for typed, limit in (((), 24), (("--max-length", "20", "--out", tmp_path / "typed"), 20)):
        code, out, _ = run(capsys, "eval", tmp_path / "run", "--tasks", "obqa", *typed)
        assert code == 0 and says(out, "20 questions", f"evaluation.max_length = {limit}")
    assert read_evaluation(tmp_path / "typed").conditions.max_length == 20


def test_smaller_evaluation_takes_no_result_away(trained, tmp_path, capsys):
    """The card of what is given away has all that was evaluated."""
    copy = shutil.copytree(trained, tmp_path / "run")
    opened = open_target(str(copy))
    limited = replace(opened, request=opened.request.model_copy(update={"limit": 7}))
    for asked, n in (({}, 7), ({"limit": None}, 20)):
        results, _ = evaluate_target(limited, **asked)
        assert {score.n for score in results.tasks.values()} == {n}
    code, out, _ = run(capsys, "eval", copy, "--tasks", "obqa", "--limit", "2")
    folder = copy / "eval" / "choice-label-float32"
    assert code == 0 and "macro average" not in out and read_results(folder).macro.n == 60
    assert run(capsys, "export", copy)[0] == 0
    (scores,) = Card(copy / "peft").scores
    asked = {task: questions for task, (questions, _, _) in scores.rows.items()}
    assert asked == {"boolq": "20", "arc_easy": "20", "obqa": "20", "macro average": "60"}
