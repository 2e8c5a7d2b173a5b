"""Test questions planted in the training rows are found at every evaluation."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest

from cli_kit import run
from evaluation_kit import make_examples, read_results
from message_kit import says
from moslora.evaluation.display import remarks
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.prompts.instructions import llm_adapters_row
from moslora.recipe import Recipe
from moslora.runs.conditions import Conditions, Leaks, TaskRecord, Weights
from moslora.runs.predictions import Prediction
from moslora.runs.results import summarise
from moslora.training import train_recipe

MakeRecipe = Callable[..., Recipe]


def rewrite(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


@pytest.fixture
def planted(world, tmp_path):
    """The world's data, in which obqa's training rows begin with two of its test rows, 3 and 5, the first under other
    letters; then with row 7 under another answer. Row 9 of arc_easy's test is the last row of obqa's training."""
    data = shutil.copytree(world / "data", tmp_path / "planted")
    obqa = [llm_adapters_row(example) for example in make_examples("obqa", 50)[30:]]
    arc = [llm_adapters_row(example) for example in make_examples("arc_easy", 50)[30:]]
    loud = make_examples("obqa", 50)[33]
    gold = len(loud.choices) - 1 - loud.gold
    question = loud.question.upper() + " ?"
    shouted = llm_adapters_row(replace(loud, question=question, choices=loud.choices[::-1], gold=gold))
    answer = "answer1"
    if obqa[7]["answer"] == answer:
        answer = "answer2"
    other = {**obqa[7], "answer": answer, "output": f"the correct answer is {answer}"}
    rewrite(data / "openbookqa" / "train.json", lambda rows: [shouted, obqa[5], other, *rows[3:-1], arc[9]])
    return data


LEAKED = {"obqa/test/3", "obqa/test/5", "arc_easy/test/9"}


def run_recipe(recipe, data, *more):
    settings = ("data.validation_rows=0", "training.epochs=null", "training.max_steps=3", "training.warmup_steps=0")
    return recipe(f"data.source={data}", *settings, *more)


def told(results):
    """What is said below the table, but for the signs of a model that has learned nothing."""
    return [line for line in remarks(results) if not line.startswith("collapse: ")]


def accuracy(predictions):
    return sum(p.prediction == p.gold for p in predictions) / len(predictions)


def test_results_with_and_without_leaks(recipe, planted, tmp_path, capsys):
    """A limit restricts the questions, a base has its run's rows, and the printed line says where a number is from."""
    out = tmp_path / "run"
    train_recipe(run_recipe(recipe, planted), out=out)
    results, folder = evaluate_target(open_target(str(out)))
    kept = {task: [] for task in results.tasks}
    for prediction in results.predictions:
        if prediction.id not in LEAKED:
            kept[prediction.task].append(prediction)
    found = results.without_leaks
    assert found is not None and found.macro is not None
    assert says(found.compared_with, "90 rows", "trained on")
    assert found.leaks == {"boolq": 0, "arc_easy": 1, "obqa": 2}
    assert {task: score.n for task, score in found.tasks.items()} == {"boolq": 20, "arc_easy": 19, "obqa": 18}
    for task, rows in kept.items():
        assert found.tasks[task].accuracy == pytest.approx(accuracy(rows))
    assert found.macro.accuracy == pytest.approx(sum(map(accuracy, kept.values())) / 3)
    assert read_results(folder) == results
    of_base, _ = evaluate_target(open_target(str(out), base=True), tasks=("obqa",), limit=15)
    assert of_base.without_leaks is not None
    assert of_base.without_leaks.leaks == {"obqa": len(LEAKED & {prediction.id for prediction in of_base.predictions})}
    values = []
    for name, score in (("obqa", found.tasks["obqa"]), ("macro average", found.macro)):
        low, high = score.interval
        values.append(f"{name} {100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})")
    code, printed, _ = run(capsys, "eval", out)
    assert code == 0 and says(printed, "90 rows", "trained on", "arc_easy 1, obqa 2", "without them", ", ".join(values))


def test_leaks_are_known_by_the_run_alone(recipe, planted, world, tmp_path):
    """Training rows that are gone are still known; without the run's record of them there are no numbers."""
    out = tmp_path / "run"
    train_recipe(run_recipe(recipe, planted, f"evaluation.source={world / 'data'}"), out=out)
    shutil.rmtree(planted)
    results, _ = evaluate_target(open_target(str(out)))
    assert results.without_leaks and results.without_leaks.leaks == {"boolq": 0, "arc_easy": 1, "obqa": 2}
    record = out / "contents.bin"
    for damaged in (record.read_bytes()[:-3], b""):
        record.write_bytes(damaged)
        results, folder = evaluate_target(open_target(str(out)), tasks=("obqa",), out=tmp_path / f"{len(damaged)}")
        assert results.without_leaks is None and not told(results) and read_results(folder) == results


def test_task_of_leaks_alone_leaves_no_average():
    conditions = Conditions("generate", "label", None, {}, Weights("float32", "cpu", 1, 128))
    ids = (("obqa", 0), ("obqa", 1), ("boolq", 0))
    predictions = [Prediction(f"{task}/test/{row}", task, gold=row, prediction=0, answer="x") for task, row in ids]
    leaks = Leaks("these", ("boolq/test/0", "obqa/test/0", "obqa/test/7"))
    results = summarise(conditions, predictions, dict.fromkeys(("obqa", "boolq"), TaskRecord(leaks=leaks)))
    found = results.without_leaks
    assert found is not None and found.macro is None
    assert found.leaks == {"obqa": 1, "boolq": 1} and list(found.tasks) == ["obqa"]
    assert found.tasks["obqa"].accuracy == 0 and results.tasks["obqa"].accuracy == 0.5
    (line,) = told(results)
    assert says(line, "these: obqa 1, boolq 1", "obqa 0.0 (0.0 to 79.3)", "boolq –", "macro average –")
