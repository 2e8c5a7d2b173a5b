"""Targets of `moslora eval`: a run, its base and its merged model are asked the same, and nothing in vain."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from card_kit import Card
from cli_kit import run
from message_kit import says
from moslora.convert.merge import merge
from moslora.evaluation import read_results
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.runs.evaluation import read_evaluation, read_predictions
from moslora.runs.manifest import read_manifest
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import MakeRecipe


def test_a_run_and_its_merged_model_are_asked_the_same_long_questions(
    recipe: MakeRecipe, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of the training rows cuts no question: every one here is longer."""
    train_recipe(recipe("data.max_length=24", "training.max_steps=6"), out=tmp_path / "run")
    merge(tmp_path / "run" / "adapter", out=tmp_path / "merged")
    monkeypatch.chdir(tmp_path)
    targets = [open_target("run"), open_target("merged", dtype="float32"), open_target("run", base=True)]
    asked = {"source": str(world / "data"), "tasks": ("obqa",)}
    runs, merged, base = (evaluate_target(target, **asked)[0] for target in targets)
    assert {results.settings.max_length for results in (runs, merged, base)} == {512}, "the model's context"
    assert not any(prediction.truncated for results in (runs, merged, base) for prediction in results.predictions)
    theirs = {prediction.id: prediction.scores for prediction in merged.predictions}
    for prediction in runs.predictions:
        assert prediction.scores == pytest.approx(theirs[prediction.id], abs=1e-4)


def test_an_unfinished_run_says_so_and_a_model_that_it_names_no_protocol(
    trained: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    (newest,) = sorted((copy / "checkpoints").iterdir())[-1:]
    options = ("--tasks", "obqa", "--limit", "2")
    assert "is unfinished" not in run(capsys, "eval", copy, *options)[1]
    shutil.rmtree(copy / "adapter")
    assert newest.name == "step-21"
    assert f"note: {copy} is unfinished: scoring step 21 of 21\n" in run(capsys, "eval", copy, *options)[1]
    for named in ([newest], [copy, "--base"]):
        assert "is unfinished" not in run(capsys, "eval", *named, *options)[1]
    said = "note: no recipe says how to ask this model, so it is asked by protocol choice"
    options = (*options, "--source", world / "data", "--out")
    assert run(capsys, "eval", world / "model", *options, tmp_path / "one")[1].count(said) == 1
    assert said not in run(capsys, "eval", world / "model", "--protocol", "choice", *options, tmp_path / "two")[1]
    asked = ("ask", world / "model", "--question", "why", "--option", "a", "--option", "b")
    assert run(capsys, *asked)[1].startswith(said)
    code, out, _ = run(capsys, *asked, "--protocol", "cloze")
    assert code == 0 and out.startswith("protocol cloze, format cloze")


def scored(copy: Path) -> dict[str, set[str]]:
    """The evaluations of a run by name, each with the weights that were scored."""
    folders = (copy / "eval").iterdir()
    return {path.name: {read_evaluation(path).settings.metadata["adapter"]} for path in folders}


def weights(adapter: Path) -> set[str]:
    return {read_manifest(adapter)["sha256"]["adapter.safetensors"]}


@pytest.mark.parametrize(
    ("inside", "typed"),
    [
        ("run/checkpoints", "step-15"),
        ("run/checkpoints", "./step-15/"),
        ("run/checkpoints/step-15", "."),
        ("run/adapter", "../checkpoints/step-15"),
        (".", "run/checkpoints/../checkpoints/step-15/"),
        (".", "link"),
        (".", "folder/step-15"),
        ("other", "adapter"),
    ],
)
def test_scores_of_a_checkpoint_are_its_own_whatever_the_path(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inside: str,
    typed: str,
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    oldest = min((copy / "checkpoints").iterdir())
    oldest.rename(copy / "checkpoints" / "step-15")
    (tmp_path / "link").symlink_to(copy / "checkpoints" / "step-15")
    (tmp_path / "folder").symlink_to(copy / "checkpoints")
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    shutil.rmtree(other / "adapter")
    (other / "adapter").symlink_to(copy / "checkpoints" / "step-15")
    monkeypatch.chdir(tmp_path / inside)
    assert run(capsys, "eval", typed, "--tasks", "obqa", "--limit", "2")[0] == 0
    assert scored(copy) == {"choice-label-float32-step-15": weights(copy / "checkpoints" / "step-15")}
    assert not (other / "eval").exists()


def test_a_folder_of_checkpoints_means_the_newest_from_inside_and_by_a_link(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    (tmp_path / "folder").symlink_to(copy / "checkpoints")
    for inside, typed in ((copy / "checkpoints", "."), (tmp_path, "folder"), (copy, "checkpoints")):
        monkeypatch.chdir(inside)
        assert run(capsys, "eval", typed, "--tasks", "obqa", "--limit", "2")[0] == 0
        assert list(scored(copy)) == ["choice-label-float32-step-21"]


def test_a_name_in_a_runs_eval_is_kept_for_the_weights_it_stands_for(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    options = ("--tasks", "obqa", "--limit", "2", "--out")
    checkpoint = copy / "checkpoints" / "step-21"
    for target, name in (([checkpoint], "mine"), ([copy, "--base"], "mine-step-21"), ([copy], "mine-base")):
        code, _, err = run(capsys, "eval", *target, *options, copy / "eval" / name)
        assert code == 2 and "other weights" in err and not (copy / "eval" / name).exists()
    assert run(capsys, "eval", checkpoint, *options, copy / "eval" / "mine-step-21")[0] == 0
    assert run(capsys, "eval", copy, *options, copy / "eval" / "mine")[0] == 0


def test_a_mistyped_path_names_what_is_there_and_is_no_hub_id(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing asks the hub."""
    monkeypatch.setattr("moslora.base.resolve._ask_hub", lambda *_: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    for place in ("runs/caps", "mine/caps"):
        shutil.copytree(trained, tmp_path / place)
    steps = [path.name for path in Run(Path("runs/caps")).checkpoints[::-1]]  # the nearest name first
    for command in ("eval", "merge"):
        for typed in ("runs/cpas", "run/caps", "rnus/cap/"):
            assert "did you mean runs/caps?" in run(capsys, command, typed)[2]
        assert says(run(capsys, command, "runs/caps/checkpoints/step-99")[2], "did you mean", *steps)
    assert "did you mean mine/caps?" in run(capsys, "eval", "mine/cpas/")[2]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    assert "did you mean theirs?" in run(capsys, "eval", "thiers")[2]
    for typed in ("./mine/nothing", "mine/nothing", "runs/caps/no/thing", "no/such/folder"):
        assert "no such folder" in run(capsys, "eval", typed)[2]
    monkeypatch.chdir("runs/caps/checkpoints")
    assert says(run(capsys, "eval", "step-99")[2], "did you mean", *steps)


def test_a_base_that_is_a_run_names_its_merged_model(
    trained: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "caps")
    asked = ("train", world / "recipe.yaml", "model.name=runs/caps", "--out", "out")
    assert "moslora merge" in run(capsys, *asked)[2]
    shutil.copytree(world / "model", tmp_path / "runs" / "caps" / "merged")
    assert "did you mean runs/caps/merged?" in run(capsys, *asked)[2]


def test_the_newest_run_may_lie_in_the_current_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "eval", "--tasks", "obqa", "--limit", "2")
    assert code == 0 and out.startswith("newest run: mine\n") and "written to mine/eval/choice-label-float32" in out


def test_a_run_does_not_depend_on_the_folder_where_it_was_trained(
    recipe: MakeRecipe, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    code, _, err = run(capsys, "train", "run", "--resume", "data.source=hub", f"model.name={world}/model")
    assert code == 0, err


def test_a_limit_of_the_evaluation_cuts_and_says_so(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_recipe(recipe("evaluation.max_length=24", "training.max_steps=3"), out=tmp_path / "run")
    code, out, _ = run(capsys, "eval", tmp_path / "run", "--tasks", "obqa")
    assert code == 0 and says(out, "20 questions", "evaluation.max_length = 24")


def test_a_typed_limit_replaces_the_recipes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    code, out, _ = run(capsys, "eval", copy, "--tasks", "obqa", "--limit", "1", "--max-length", "24")
    assert code == 0 and says(out, "1 question", "evaluation.max_length = 24")
    assert read_evaluation(copy / "eval" / "choice-label-float32").settings.max_length == 24


def test_a_recipes_limit_is_lifted_and_a_look_at_a_few_questions_takes_no_result_away(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card of what is given away has all that was evaluated."""
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    opened = open_target(str(copy))
    limited = replace(opened, request=opened.request.model_copy(update={"limit": 7}))
    results, _ = evaluate_target(limited)
    assert {score.n for score in results.tasks.values()} == {7}
    results, _ = evaluate_target(limited, limit=None)
    assert {score.n for score in results.tasks.values()} == {20}
    code, out, _ = run(capsys, "eval", copy, "--tasks", "obqa", "--limit", "2")
    folder = copy / "eval" / "choice-label-float32"
    assert code == 0 and "macro average" not in out and read_results(folder).macro.n == 60
    code, out, _ = run(capsys, "eval", copy, "--tasks", "obqa", "--limit", "all")
    assert code == 0 and len(read_predictions(folder)) == 60
    assert run(capsys, "export", copy)[0] == 0
    (scores,) = Card(copy / "peft").scores
    asked = {task: questions for task, (questions, _, _) in scores.rows.items()}
    assert asked == {"boolq": "20", "arc_easy": "20", "obqa": "20", "macro average": "60"}
