"""Evaluations as a whole: what moves a result, what is refused, and what is left on the disk."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation_kit import all_tasks, make_examples, make_model, tokenizer
from moslora.errors import MosloraError, UsageError
from moslora.evaluation import Prediction, Results, evaluate, load_predictions, load_results
from moslora.evaluation.batches import BLOCK_SIZE
from moslora.evaluation.cloze import Cloze
from moslora.evaluation.rank import Rank
from moslora.evaluation.without_leaks import Leaks

RANK: dict[str, Any] = {"protocol": "rank", "format": "label"}
CLOZE: dict[str, Any] = {"protocol": "cloze", "format": "cloze"}


def scores_by_id(results: Results) -> dict[str, tuple[float, ...]]:
    return {prediction.id: prediction.scores for prediction in results.predictions}


@pytest.mark.parametrize("settings", [RANK, CLOZE], ids=["rank", "cloze"])
def test_bfloat16_scores_depend_on_the_ids_alone(settings: dict[str, Any]) -> None:
    """Bit for bit, whatever the limit, the order and the other tasks. Scored alone, they do differ."""
    model = make_model(torch.bfloat16)
    examples = {"piqa": make_examples("piqa", 200), "boolq": make_examples("boolq", 30)}
    whole = evaluate(model, tokenizer(), examples, **settings)
    shuffled = {"piqa": random.Random(0).sample(examples["piqa"], 200)}
    limited = evaluate(model, tokenizer(), shuffled, limit=100, **settings)
    assert len(limited.predictions) == 100
    assert scores_by_id(limited).items() <= scores_by_id(whole).items()
    assert whole.drift > 1e-3
    drifts = {task: score.drift for task, score in whole.tasks.items()}
    assert len(set(drifts.values())) == 2
    assert whole.macro.close_calls == sum(p.margin < drifts[p.task] for p in whole.predictions)


@pytest.mark.parametrize("settings", [RANK, CLOZE], ids=["rank", "cloze"])
def test_float32_does_not_drift(settings: dict[str, Any]) -> None:
    results = evaluate(make_model(), tokenizer(), all_tasks(12), **settings)
    assert results.drift < 1e-5
    assert results.macro.close_calls == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_killed_evaluation_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = make_model(dtype)
    examples = {"piqa": make_examples("piqa", BLOCK_SIZE + 60), "boolq": make_examples("boolq", 30)}
    straight = evaluate(model, tokenizer(), examples, out=tmp_path / "straight", **RANK)

    out = tmp_path / "killed"
    evaluate(model, tokenizer(), examples, out=out, **RANK)
    (out / "results.json").unlink()
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    # In the middle of the second block, and in the middle of a line.
    (out / "predictions.jsonl").write_bytes(b"".join(lines[: BLOCK_SIZE + 10]) + lines[BLOCK_SIZE + 10][:25])

    scored = []
    score = Rank.score
    monkeypatch.setattr(Rank, "score", lambda self, e, **k: scored.append(len(e)) or score(self, e, **k))
    resumed = evaluate(model, tokenizer(), examples, out=out, **RANK)
    assert scored[:2] == [60, 30]  # the first block is not computed again; after these, the drift's calls
    assert resumed.predictions == straight.predictions
    assert (out / "results.json").read_bytes() == (tmp_path / "straight/results.json").read_bytes()
    assert load_predictions(out) == load_predictions(tmp_path / "straight")


def test_a_folder_is_continued_towards_more_questions_and_tasks(tmp_path: Path) -> None:
    model = make_model()
    examples = {"piqa": make_examples("piqa", 60)}
    evaluate(model, tokenizer(), examples, out=tmp_path, limit=20, **RANK)
    examples["boolq"] = make_examples("boolq", 60)
    results = evaluate(model, tokenizer(), examples, out=tmp_path, limit=40, **RANK)
    assert {task: score.n for task, score in results.tasks.items()} == {"piqa": 40, "boolq": 40}
    fewer = evaluate(model, tokenizer(), {"boolq": examples["boolq"]}, out=tmp_path, limit=10, **RANK)
    assert {task: score.n for task, score in fewer.tasks.items()} == {"boolq": 10}
    assert len(load_predictions(tmp_path)) == 80


def rounded(results: bytes) -> Any:
    return json.loads(results, parse_float=lambda text: round(float(text), 4))


def test_results_on_disk_are_of_all_that_was_asked(tmp_path: Path) -> None:
    """In whatever pieces, they are those of one evaluation; a narrower one takes nothing away."""
    model = make_model()
    examples = {task: make_examples(task, 40) for task in ("piqa", "boolq", "obqa")}
    ids = {task: {example.id for example in examples[task][::3]} for task in examples}
    leaks = Leaks("the rows", frozenset().union(*ids.values()))

    def into(name: str, *tasks: str, limit: int | None = None) -> bytes:
        asked = {task: examples[task] for task in tasks}
        evaluate(model, tokenizer(), asked, out=tmp_path / name, limit=limit, leaks=leaks, **RANK)
        return (tmp_path / name / "results.json").read_bytes()

    whole = into("whole", *examples)
    assert into("whole", "obqa", limit=2) == whole
    assert into("whole", "boolq") == whole
    assert json.loads(whole)["without_leaks"]["leaks"] == {task: 14 for task in examples}
    into("pieces", "piqa", "boolq", limit=30)
    into("pieces", "boolq", limit=10)
    mixed = json.loads(into("pieces", "obqa"))
    assert {task: score["n"] for task, score in mixed["tasks"].items()} == {"piqa": 30, "boolq": 30, "obqa": 40}
    assert mixed["limits"] == {"piqa": 30, "boolq": 30, "obqa": None}
    assert mixed["micro"]["n"] == 100 and set(mixed["settings"]["data"]) == set(examples)
    assert rounded(into("pieces", "piqa", "boolq")) == rounded(whole), "but for the order in which sums are taken"
    (tmp_path / "pieces" / "predictions.jsonl").unlink()
    alone = json.loads(into("pieces", "obqa"))
    assert list(alone["tasks"]) == ["obqa"], "the others' predictions are gone"


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    model = make_model()
    examples = {"piqa": make_examples("piqa", 5)}
    evaluate(model, tokenizer(), examples, out=tmp_path, metadata={"model": "a"}, **RANK)
    with pytest.raises(UsageError, match=r"batch_size was 32, is 16; metadata.model was a, is b") as caught:
        evaluate(model, tokenizer(), examples, out=tmp_path, batch_size=16, metadata={"model": "b"}, **RANK)
    assert "another --out or remove the folder" in str(caught.value)
    changed = {"piqa": make_examples("piqa", 6)}
    with pytest.raises(UsageError, match=r"data\.piqa was"):
        evaluate(model, tokenizer(), changed, out=tmp_path, metadata={"model": "a"}, **RANK)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UsageError, match=r"predictions without settings\.json"):
        evaluate(model, tokenizer(), examples, out=tmp_path, metadata={"model": "a"}, **RANK)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    model, examples = make_model(), {"piqa": make_examples("piqa", 5)}
    evaluate(model, tokenizer(), examples, out=tmp_path, **RANK)
    file = tmp_path / "predictions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "{}\n", *lines[2:]]))
    with pytest.raises(MosloraError, match=r"predictions\.jsonl:2: not a prediction"):
        evaluate(model, tokenizer(), examples, out=tmp_path, **RANK)
    file.write_text("".join([*lines, lines[0]]))
    with pytest.raises(MosloraError, match=r"predictions\.jsonl:6: .* comes twice"):
        load_predictions(tmp_path)


def test_dropout_left_on_is_refused() -> None:
    model = make_model()
    model.model.layers[1].mlp.train()
    with pytest.raises(MosloraError, match=r"first model\.layers\.1\.mlp: .* call model\.eval\(\)"):
        evaluate(model, tokenizer(), all_tasks(1), **RANK)


def test_all_unusable_tasks_are_named_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rank, "score", lambda *_, **__: pytest.fail("scored"))
    twice = make_examples("obqa", 2)
    examples = {**all_tasks(2), "boolq": [], "obqa": [twice[0], twice[0]]}
    with pytest.raises(MosloraError) as caught:
        evaluate(make_model(), tokenizer(), examples, protocol="rank", format="cloze")
    lines = str(caught.value).splitlines()
    assert len(lines) == 8  # six of several tokens, one empty, one with an id twice
    assert "task boolq: no questions; check the data source" in lines
    assert sum("an id comes twice" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": "rnak"}, "protocol 'rnak' is none of rank, cloze, generate"),
        ({"format": "labels"}, "format 'labels' is none of label, llm-adapters, cloze, cloze-passage"),
        ({"limit": 0}, "limit = 0"),
    ],
)
def test_wrong_names_and_numbers(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(make_model(), tokenizer(), all_tasks(1), **{**RANK, **changed})


def test_results_on_disk_hold_what_was_returned(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    examples = {"hellaswag": make_examples("hellaswag", 150), "siqa": make_examples("siqa", 20)}
    results = evaluate(
        make_model(),
        tokenizer(),
        examples,
        out=tmp_path,
        limit=130,
        metadata={"model": "tiny", "step": 3},
        progress=lambda *state: seen.append(state),
        **CLOZE,
    )
    assert seen == [("hellaswag", 128, 130), ("hellaswag", 130, 130), ("siqa", 20, 20)]
    assert load_results(tmp_path) == load_results(tmp_path / "results.json") == results
    assert tuple(load_predictions(tmp_path)) == results.predictions
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["settings"]["dtype"] == "float32"
    assert written["settings"]["primary"] == "accuracy_per_character"
    assert written["settings"]["metadata"] == {"model": "tiny", "step": 3}
    assert written["settings"]["data"].keys() == {"hellaswag", "siqa"}
    assert {task: score["n"] for task, score in written["tasks"].items()} == {"hellaswag": 130, "siqa": 20}
    assert {path.name for path in tmp_path.iterdir()} == {
        "settings.json",
        "predictions.jsonl",
        "results.json",
    }
    assert "parse_rate" not in written["macro"]


def test_predictions_survive_the_disk_bit_for_bit() -> None:
    examples = make_examples("arc_challenge", 5)
    results = evaluate(make_model(torch.bfloat16), tokenizer(), {"arc_challenge": examples}, **CLOZE)
    for prediction in results.predictions:
        assert Prediction.from_json(prediction.to_json()) == prediction
    assert Cloze.primary == results.settings.primary
