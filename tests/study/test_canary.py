"""The canary: held-out rows asked while training, and what it says of a collapse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli_kit import run as cli
from moslora.base.load import load_tokenizer
from moslora.data.select import Questions, select
from moslora.errors import UsageError
from moslora.evaluation import Prediction, evaluate
from moslora.evaluation.predictions import collapse, macro, score_task
from moslora.evaluation.request import Request
from moslora.runs.adapter_folder import load_adapted, open_adapter
from moslora.study import canary
from moslora.study.canary import make_canary
from moslora.study.report import write_report
from moslora.tasks import INSTRUCTION
from moslora.training import train_recipe
from training_kit import MakeRecipe, adapter, same_bits


def rows(run: Path) -> list[dict[str, float | str]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in found if "validation_loss" in row]


@pytest.mark.parametrize("change", [(), ("adapter.mixer={kind: task-gate, embedding_size: 8}",)])
def test_held_out_rows_are_asked_as_an_evaluation_would(
    recipe: MakeRecipe, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, ...]
) -> None:
    asked = recipe("data.validation_rows=24", "training.canary_rows=20", *change)
    train_recipe(recipe("data.validation_rows=24", *change), out=tmp_path / "without")
    overrides = ("data.validation_rows=24", "training.canary_rows=20", *change)
    code, said, errors = cli(capsys, "train", world / "recipe.yaml", *overrides, "--out", tmp_path / "run")
    assert code == 0, errors
    assert same_bits(adapter(tmp_path / "without"), adapter(tmp_path / "run"))  # asking changes nothing
    assert [row["step"] for row in rows(tmp_path / "run")] == [5, 10, 15, 17] and said.count("  canary ") == 4
    tested = Questions(asked.evaluation_tasks, asked.evaluation_source)
    selection = select(asked.data, asked.training_tasks, tested, seed=asked.seed)
    by_task: dict[str, list] = {}
    for row in selection.validation:
        by_task.setdefault(row.task, []).append(row)
    model = load_adapted(open_adapter(tmp_path / "run" / "adapter"))
    whole = evaluate(model, load_tokenizer(asked.model), by_task, Request.of(asked))
    ask = make_canary(asked.model_copy(update={"training": asked.training.model_copy(update={"canary_rows": 24})}))
    found = ask(model, 500)
    assert found["canary"] == pytest.approx(whole.macro.accuracy)
    assert found["canary_majority_class"] == pytest.approx(whole.macro.majority_class)
    fewer = make_canary(asked)(model, 500)
    assert rows(tmp_path / "run")[-1]["canary"] == fewer["canary"]


def answers(*given: int | None, gold: tuple[int, ...], task: str = "t") -> list[Prediction]:
    return [
        Prediction(f"{task}/{n}", task, right, answer, text="", answer="" if answer is None else "x")
        for n, (answer, right) in enumerate(zip(given, gold, strict=True))
    ]


def test_signs_of_a_collapse() -> None:
    gold = (0, 0, 1, 1, 2, 2) * 10
    good = score_task(answers(*gold, gold=gold), drift=None)
    one = score_task(answers(*[1] * 60, gold=gold), drift=None)
    wrong = score_task(answers(*[(right + 1) % 3 for right in gold], gold=gold), drift=None)
    mute = score_task(answers(*[*gold[:56], None, None, None, None], gold=gold), drift=None)
    sure = score_task(answers(*[0] * 60, gold=(0,) * 58 + (1, 1)), drift=None)  # one answer, and rightly so
    few = score_task(answers(1, 1, 1, gold=(0, 1, 2)), drift=None)
    assert collapse({"t": good, "u": sure}, macro([good, sure]), "accuracy") == []
    assert collapse({"t": few}, macro([few]), "accuracy") == []  # too few to say
    assert collapse({"t": one}, macro([one]), "accuracy") == ["one answer for nearly everything: t 100.0 %"]
    assert collapse({"t": wrong}, macro([wrong]), "accuracy") == [
        "below the majority class: t 0.0 against 33.3, macro average 0.0 against 33.3"
    ]
    assert collapse({"t": mute}, macro([mute]), "accuracy") == ["only 93.3 % of the texts have an answer"]
    near = replace(good, accuracy=0.30, standard_error=0.02)
    assert collapse({"t": near}, near, "accuracy") == []  # within two standard errors
    assert len(collapse({"t": replace(near, accuracy=0.29)}, near, "accuracy")) == 1


def test_a_collapse_is_in_the_line_the_metrics_and_the_report(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def always(recipe: object) -> object:
        return lambda model, tokens: {"canary": 0.1, "canary_majority_class": 0.5, "canary_collapse": "all <alike>"}

    run = tmp_path / "run"
    train_recipe(recipe("training.canary_rows=2"), out=run, make_canary=always)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "canary 10.0% (majority class 50.0%)  COLLAPSE: all <alike>" in said
    assert rows(run)[-1]["canary_collapse"] == "all <alike>"
    text = write_report([run], out=tmp_path / "page").read_text()
    assert "run: canary at step 21: all &lt;alike&gt;" in text and "Canary: share" in text


def test_a_canary_that_cannot_be_asked_stops_no_training(
    trained: Path,
    recipe: MakeRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And leaves dropout on."""

    def refuse(*arguments: object) -> None:
        raise UsageError("these options cannot be compared")

    monkeypatch.setattr(canary, "make_scorer", refuse)
    train_recipe(recipe("training.canary_rows=2"), out=tmp_path / "run", make_canary=make_canary)
    assert "note: no canary: these options cannot be compared" in capsys.readouterr().out
    assert same_bits(adapter(trained), adapter(tmp_path / "run"))


def test_rows_that_are_no_questions_are_refused(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = canary.select

    def nameless(*arguments: object, **options: object) -> object:
        found = real(*arguments, **options)  # type: ignore[arg-type]
        return replace(found, validation=[replace(row, task=INSTRUCTION) for row in found.validation])

    monkeypatch.setattr(canary, "select", nameless)
    with pytest.raises(UsageError, match="none of the validation rows is a question"):
        make_canary(recipe("training.canary_rows=2"))
