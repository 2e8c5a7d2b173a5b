"""A task of one's own from the first command to the last: trained, evaluated, asked, merged, routed by a gate."""

import random
import re
import shutil
from pathlib import Path

import pytest

from card_kit import Card
from cli_kit import run
from evaluation_kit import WORDS, read_results
from message_kit import says
from moslora.data.sources import load_examples
from moslora.evaluation.display import heading
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import load_recipe
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import adapter
from world_kit import write_rows

OPTIONS = ("rain", "birds", "stone")
DECLARED = "tasks:\n  weather: {train: rows.jsonl, question: text, options: [rain, birds, stone], answer: label}\n"


@pytest.fixture(scope="module")
def mine(world, tmp_path_factory):
    """A folder with the data, the file beside them, and a finished run that trained on them and on BoolQ."""
    folder = tmp_path_factory.mktemp("mine")
    write_rows(folder, OPTIONS, "label")
    (folder / "weather.yaml").write_text(DECLARED, encoding="utf-8")
    (folder / "recipe.yaml").write_text(f"extends: [{world / 'recipe.yaml'}, weather.yaml]\n", encoding="utf-8")
    train_recipe(recipe(folder), out=folder / "run")
    return folder


def recipe(folder, *overrides):
    own = ("data.tasks=[weather, boolq]", "evaluation.tasks=null", "evaluation.limit=4", "data.validation_rows=6")
    return load_recipe(folder / "recipe.yaml", (*own, *overrides))


def test_every_number_of_rows_is_explained(mine, tmp_path, capsys):
    """Those of a training add up to the rows of its files; the recipe's limit is named, a typed one is not."""
    (note,) = [note for note in Run(mine / "run").facts["data"]["notes"] if " rows: " in note]
    total, *parts = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", note)]
    assert total == sum(parts) == 60 + 30 and says(note, "trained on", "6 for validation", "held out as test questions")
    held_out = len(load_examples(recipe(mine).own_tasks["weather"], "test", source="wheel"))
    assert f"{held_out} held out" in note
    copy = Path(shutil.copytree(mine / "run", tmp_path / "run"))
    code, said, _ = run(capsys, "eval", copy, "--tasks", "weather")
    assert code == 0 and says(said, f"weather 4 of {held_out}", "evaluation.limit of the recipe", "--limit all")
    code, said, _ = run(capsys, "eval", copy, "--tasks", "weather", "--limit", "5")
    assert code == 0 and "evaluation.limit" not in said


def scored(target, **options):
    return evaluate_target(open_target(str(target), dtype="float32"), **options)[0]


def test_a_run_finds_its_rows_from_anywhere(mine, tmp_path, monkeypatch, capsys):
    for name in ("rows.jsonl", "weather.yaml", "recipe.yaml"):
        shutil.copy(mine / name, tmp_path / name)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    short = recipe(Path(), "training.epochs=null", "training.max_steps=3")
    assert short.tasks["weather"].train == "rows.jsonl"
    train_recipe(short, out=Path("runs/mine"))
    monkeypatch.chdir(elsewhere)
    assert run(capsys, "eval", "../runs/mine", "--limit", "2")[0] == 0
    assert run(capsys, "eval", tmp_path / "runs" / "mine", "--tasks", "weather", "--limit", "3")[0] == 0
    from_elsewhere = recipe(Path(".."), "training.epochs=null", "training.max_steps=3")
    assert from_elsewhere.tasks["weather"].train == "../rows.jsonl"
    shutil.rmtree(tmp_path / "runs" / "mine" / "adapter")
    train_recipe(from_elsewhere, out=tmp_path / "runs" / "mine", resuming=True)


def test_the_merged_model_is_asked_as_the_run_from_anywhere(mine, tmp_path, monkeypatch, capsys):
    """Its tasks, protocol, format, precision and limit, after a move; an export brings them back as well. What the
    files are is not for others."""
    cloze = recipe(mine, "data.format=cloze", "evaluation.protocol=cloze", "training.epochs=1")
    train_recipe(cloze, out=tmp_path / "run")
    assert run(capsys, "export", tmp_path / "run")[0] == 0
    code, said, _ = run(capsys, "merge", tmp_path / "run")
    assert code == 0 and said.splitlines()[-1].endswith("--private --exclude moslora.yaml")
    moved = shutil.move(tmp_path / "run" / "merged", tmp_path / "moved")
    assert run(capsys, "import", tmp_path / "run" / "peft", "--dtype", "float32", "--out", tmp_path / "again")[0] == 0
    monkeypatch.chdir(tmp_path)
    ours, *others = (evaluate_target(open_target(str(one)))[0] for one in (tmp_path / "run", moved, "again"))
    for theirs in others:
        assert heading(theirs) == heading(ours) and list(theirs.tasks) == ["weather", "boolq"]
        assert [p.id for p in ours.predictions] == [p.id for p in theirs.predictions] and len(ours.predictions) == 8
        for one, other in zip(ours.predictions, theirs.predictions, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
    text = (Path(moved) / "moslora.yaml").read_text()
    (Path(moved) / "moslora.yaml").write_text(text.replace(str(mine), "/gone"))
    code, _, error = run(capsys, "eval", moved)
    assert code == 2 and says(error, "/gone/rows.jsonl: no such file") and error.count("\n") == 1


def test_texts_are_asked_beside_questions_and_compared(mine, tmp_path, monkeypatch, capsys):
    """By the run, its base and the merged model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mine / "run", "run")
    Path("t.txt").write_text("\n\n".join(" ".join(random.Random(n).choices(WORDS, k=9)) for n in range(9)))
    Path("t.yaml").write_text("tasks: {manual: {texts: t.txt}}\n")
    for base in ((), ("--base",)):
        code, said, errors = run(capsys, "eval", "run", "--tasks", "boolq,t.yaml", "--limit", "all", *base)
        assert code == 0 and "nats per byte" in said and "macro" not in said, errors
    results = read_results(Run(Path("run")).evaluation_folder())
    assert list(results.tasks) == ["boolq"] and results.texts["manual"].n == 9
    assert results.without_leaks and list(results.without_leaks.leaks) == ["boolq"]
    code, said, _ = run(capsys, "compare", "run", "--outcome", "nats_per_byte")
    assert code == 0 and "manual" in said and "boolq" not in said
    code, said, _ = run(capsys, "compare", "run")
    assert code == 0 and "boolq" in said and "left out: manual" in said
    assert run(capsys, "merge", "run")[0] == 0
    merged = scored("run/merged", tasks="t.yaml", limit=None, out=tmp_path / "m")
    assert merged.texts["manual"].nats_per_byte == pytest.approx(results.texts["manual"].nats_per_byte, abs=1e-4)
    assert merged.macro is None and not merged.tasks


def test_a_gate_has_an_embedding_for_each_task_of_the_run(mine, tmp_path, capsys):
    gated = recipe(mine, "adapter.mixer={kind: task-gate, experts: 2, embedding_size: 8}", "training.epochs=1")
    train_recipe(gated, out=tmp_path / "gated")
    sizes = {len(value) for key, value in adapter(tmp_path / "gated").items() if key.endswith("embedding")}
    assert sizes == {3}, "two tasks, and rows of none"
    scored(tmp_path / "gated")
    assert run(capsys, "merge", tmp_path / "gated", "--task", "weather")[0] == 0
    merged = tmp_path / "gated" / "merged-weather"
    assert list(scored(merged, out=tmp_path / "e").tasks) == ["weather"], "boolq is another gate's"
    (scores,) = Card(merged).scores
    assert [*scores.rows] == ["weather"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.tasks=[wether]", "unknown task 'wether'; did you mean weather?"),
        ("tasks.weather.question=a b", "is not a Jinja expression"),
        ("tasks.weather.options=a, b", "in brackets"),
        ("tasks.weather.cloze=nothing", "must contain {question}"),
        ("tasks.weather.label=answer 1", "must be letters"),
        ("tasks.weather.held_out=0", "must be greater than 0"),
        ("tasks.boolq.train=x", "'boolq' is no name for a task"),
        ("tasks.other.options=[a, b]", "tasks.other.train: is missing"),
        ("tasks.passages.texts=a.txt", "'passages' is no name for a task"),
        ("data.tasks=[boolq, passages]", "passages: texts cannot be training rows; use them in evaluation.tasks"),
    ],
)
def test_a_wrong_declaration_is_one_line(mine, override, said, capsys):
    code, _, error = run(capsys, "train", mine / "recipe.yaml", override, "--dry-run")
    assert code == 2 and said in error and error.count("\n") == 1
