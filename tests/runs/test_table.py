"""The list of runs: finished, unfinished, imported, of an experiment, and one that cannot be read."""

import shutil
from pathlib import Path

import pytest

import importing_kit
from cli_kit import run
from evaluation_kit import read_results
from message_kit import says
from moslora.convert.importing import import_adapter
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.model import Local
from moslora.evaluation.target import open_target
from moslora.runs.conditions import read_header
from moslora.runs.evaluation import read_evaluation, read_predictions
from moslora.runs.listing import table_of_runs
from moslora.runs.run import SETTINGS, Run
from training_kit import cut_after


def interrupted(monkeypatch, target, *, after, **asked):
    """An evaluation that ends after so many blocks, as by Ctrl-C."""
    log_p, blocks = Local._log_p, iter(range(after))

    def until(self, questions, **options):
        if next(blocks, None) is None:
            raise KeyboardInterrupt
        return log_p(self, questions, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Local, "_log_p", until)
        evaluate_target(open_target(target), **asked)


def test_an_interrupted_evaluation_is_marked_and_in_no_average(trained, tmp_path, monkeypatch, capsys):
    """Also where another task was finished since."""
    monkeypatch.setattr("moslora.evaluation.batches.BLOCK_SIZE", 8)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/one")
    where = Path("runs/one/eval/choice-label-float32")

    def scores():
        return table_of_runs(Path("runs"))[1][-1]

    evaluate_target(open_target("runs/one"), limit=4)
    before = scores()
    assert "unfinished" not in before
    interrupted(monkeypatch, "runs/one", after=3 + 3 + 2, tasks="boolq,arc_easy,obqa", limit=None)
    done = len(read_predictions(where))
    assert done == 20 + 20 + 16 and "choice-label-float32 unfinished" in scores()
    evaluate_target(open_target("runs/one"), tasks="boolq", limit=3)
    assert "choice-label-float32 unfinished" in scores()
    results, (partial,) = read_results(where), read_evaluation(where).unfinished
    assert partial not in results.tasks and results.macro.n == sum(s.n for s in results.tasks.values())
    assert "macro" not in scores() and f"{100 * results.macro.accuracy:.1f}" not in scores()
    shutil.copytree("runs/one", "runs/two")
    capsys.readouterr()
    assert f"interrupted and left out: {partial} (16 of 20)" in "".join(map(str, run(capsys, "compare", "runs")))
    evaluate_target(open_target("runs/one"), limit=None)
    assert read_results(where).macro.n == 60 and "(n 60)" in scores().split(";")[0]


def test_every_run_is_listed_with_its_state_and_scores(world, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/done", "runs/cut", "runs/e/runs/lora-0.03-0", "runs/strange"):
        shutil.copytree(trained, name)
    cut_after(20, Path("runs/cut"))
    Path("runs/strange/recipe.yaml").write_text("gate: 3", encoding="utf-8")
    Path("runs/begun").mkdir()
    shutil.copy(trained / "recipe.yaml", "runs/begun")
    importing_kit.altered_source(tmp_path / "source", world, lambda config, state: None)
    import_adapter(tmp_path / "source", out=Path("runs/imported"))
    _, folder = evaluate_target(open_target("runs/done"), limit=4)
    (folder / "results.json").write_text("for people", encoding="utf-8")
    header, *rows = table_of_runs(Path("runs"))
    listed = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    states = {name: (row["steps"], row["state"]) for name, row in listed.items() if name != "strange"}
    assert states == {
        "begun": ("–", "not begun"),
        "cut": ("20/21", "unfinished, at step 21"),
        "done": ("21/21", "finished"),
        "e/runs/lora-0.03-0": ("21/21", "finished"),
        "imported": ("–", "imported"),
    }
    assert listed["strange"]["adapter"] == "unreadable recipe"
    accuracy = read_results(folder).macro.accuracy
    assert listed["done"]["scores"] == f"choice-label-float32 {100 * accuracy:.1f} (n 12)"
    assert listed["done"]["adapter"] == "mixer dense, rank 4, s = 8/4" and listed["done"]["base"] == "model"
    code, said, _ = run(capsys, "runs")
    assert code == 0 and says(said, "begun", "e/runs/lora-0.03-0")


def test_an_imported_adapter_uses_the_evaluation_with_a_base(world, tmp_path):
    importing_kit.altered_source(tmp_path / "source", world, lambda config, state: None)
    import_adapter(tmp_path / "source", out=tmp_path / "run")
    for name in ("choice-label-bfloat16", "cloze-cloze-bfloat16", "cloze-cloze-bfloat16-base"):
        (tmp_path / "run/eval" / name).mkdir(parents=True)
        (tmp_path / "run/eval" / name / SETTINGS).touch()
    assert Run(tmp_path / "run").evaluation_folder().name == "cloze-cloze-bfloat16"


def test_averages_of_run_and_base_are_over_the_same_questions(trained, tmp_path):
    path = shutil.copytree(trained, tmp_path / "done")
    ours, _ = evaluate_target(open_target(str(path)), limit=4)
    base, its = evaluate_target(open_target(str(path), base=True), tasks="obqa", limit=4)
    shown = [f"choice-label-float32 {100 * ours.tasks['obqa'].accuracy:.1f} (n 4)"]
    shown.append(f"choice-label-float32-base {100 * base.macro.accuracy:.1f} (n 4)")
    *scores, remark = table_of_runs(path)[1][-1].split("; ")
    assert scores == shown and says(remark, "the 4 questions that all answered")
    file = its / "settings.json"
    settings = file.read_text("utf-8")
    file.write_text(settings.replace(read_header(its).conditions.data["obqa"], "0" * 64), encoding="utf-8")
    *_, remark = table_of_runs(path)[1][-1].split("; ")
    assert says(remark, "different questions", "moslora compare")
    file.write_text(settings, encoding="utf-8")
    evaluate_target(open_target(str(path), base=True), limit=4)
    assert "different" not in table_of_runs(path)[1][-1]
