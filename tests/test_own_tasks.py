"""A task of one's own from the first command to the last: trained, evaluated, asked, merged, routed by a gate."""

import json
import random
from pathlib import Path

import pytest

from cli_kit import run
from evaluation_kit import WORDS
from moslora.evaluation import Evaluation, Results
from moslora.evaluation.target import evaluate_target, open_target
from moslora.recipe import Recipe, load_recipe
from moslora.training import train_recipe
from training_kit import adapter

OPTIONS = ("rain", "birds", "stone")
DECLARED = "tasks:\n  weather: {train: rows.jsonl, question: text, options: [rain, birds, stone], answer: label}\n"


@pytest.fixture(scope="module")
def mine(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, the file beside them, and a finished run that trained on them and on BoolQ."""
    folder, draw = tmp_path_factory.mktemp("mine"), random.Random(0)
    rows = [{"text": " ".join([answer, *draw.choices(WORDS, k=5)]), "label": answer} for answer in OPTIONS * 20]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "weather.yaml").write_text(DECLARED, encoding="utf-8")
    (folder / "recipe.yaml").write_text(f"extends: [{world / 'recipe.yaml'}, weather.yaml]\n", encoding="utf-8")
    train_recipe(recipe(folder), out=folder / "run")
    return folder


def recipe(folder: Path, *overrides: str) -> Recipe:
    own = ("data.tasks=[weather, boolq]", "evaluation.tasks=null", "evaluation.limit=4", "data.validation_rows=6")
    return load_recipe(folder / "recipe.yaml", (*own, *overrides))


def scored(target: Path | str, **options: object) -> Results:
    return evaluate_target(open_target(str(target), dtype="float32"), **options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(("protocol", "format"), [("rank", "label"), ("generate", "label"), ("cloze", "cloze")])
def test_every_protocol_scores_it(mine: Path, tmp_path: Path, protocol: str, format: str) -> None:
    results = scored(mine / "run", protocol=protocol, format=format, out=tmp_path / "e")
    assert list(results.tasks) == ["weather", "boolq"]
    assert {p.id.partition("/")[0] for p in results.predictions} == {"weather", "boolq"}
    assert results.without_leaks and results.without_leaks.leaks == {"weather": 0, "boolq": 0}
    assert Evaluation(tmp_path / "e").results.tasks["weather"].n == 4


def test_the_merged_model_answers_as_the_run_by_the_same_file(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "merge", mine / "run", "--out", tmp_path / "merged")[0] == 0
    options = {"protocol": "cloze", "format": "cloze", "limit": None}
    ours = scored(mine / "run", tasks="weather", out=tmp_path / "a", **options)
    merged = scored(tmp_path / "merged", tasks=str(mine / "weather.yaml"), out=tmp_path / "b", **options)
    assert len(ours.predictions) == len(merged.predictions) == 6
    for one, other in zip(ours.predictions, merged.predictions, strict=True):
        assert one.id == other.id and one.scores == pytest.approx(other.scores, abs=1e-4)


def test_ask_words_the_question_as_the_only_own_task(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--option={option}" for option in OPTIONS]
    code, said, _ = run(capsys, "ask", mine / "run", "--question", "rain fell", *options)
    assert code == 0 and "asked as weather" in said and all(option in said for option in OPTIONS)


def test_a_gate_has_an_embedding_for_each_task_of_the_run(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gated = recipe(mine, "adapter.mixer={kind: task-gate, experts: 2, embedding_size: 8}", "training.epochs=1")
    train_recipe(gated, out=tmp_path / "gated")
    sizes = {len(value) for key, value in adapter(tmp_path / "gated").items() if key.endswith("embedding")}
    assert sizes == {3}, "two tasks, and rows of none"
    assert run(capsys, "merge", tmp_path / "gated", "--task", "weather")[0] == 0
    assert (tmp_path / "gated" / "merged-weather" / "config.json").is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.tasks=[wether]", "unknown task 'wether'; did you mean weather?"),
        ("tasks.weather.question=a b", "is neither a Jinja expression nor a template"),
        ("tasks.weather.cloze=nothing", "must match pattern"),
        ("tasks.weather.label=answer 1", "must match pattern"),
        ("tasks.weather.held_out=0", "must be greater than 0"),
        ("tasks.boolq.train=x", "'boolq' cannot be the name of a task"),
        ("tasks.other.options=[a, b]", "tasks.other.train: is missing"),
    ],
)
def test_a_wrong_declaration_is_one_line(
    mine: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(capsys, "train", mine / "recipe.yaml", override, "--dry-run")
    assert code == 2 and said in error and error.count("\n") == 1
