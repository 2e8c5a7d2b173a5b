"""Evaluations as a whole: what moves a result, what is refused, and what is left on the disk."""

import copy
import json
import random
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers

from evaluation_kit import all_tasks, make_examples, make_model, tokenizer
from message_kit import says
from moslora.errors import MosloraError, UsageError
from moslora.evaluation import Request, Results, evaluate, read_results
from moslora.evaluation import scorer as scorer_module
from moslora.evaluation.batches import BLOCK_SIZE
from moslora.evaluation.choice import Choice
from moslora.evaluation.cloze import Cloze
from moslora.runs.answers import order_key
from moslora.runs.evaluation import is_finished, read_evaluation, read_predictions
from moslora.runs.predictions import Prediction
from moslora.runs.settings import Leaks
from moslora.tasks import Example, Numbered

CHOICE: dict[str, Any] = {"protocol": "choice", "format": "label"}
CLOZE: dict[str, Any] = {"protocol": "cloze", "format": "cloze"}


def lead(prediction: Prediction) -> float:
    """The best deciding score minus the second best."""
    second, best = sorted(prediction.deciding_scores)[-2:]
    return best - second


def scores_by_id(results: Results) -> dict[str, tuple[float, ...]]:
    return {prediction.id: prediction.scores for prediction in results.predictions}


@pytest.mark.parametrize("settings", [CHOICE, CLOZE], ids=["choice", "cloze"])
def test_bfloat16_scores_depend_on_the_ids_alone(settings: dict[str, Any]) -> None:
    """Bit for bit, whatever the limit, the order and the other tasks."""
    model = make_model(torch.bfloat16)
    examples = {"piqa": make_examples("piqa", 200), "boolq": make_examples("boolq", 30)}
    whole = evaluate(model, tokenizer(), examples, Request(**settings))
    shuffled = {"piqa": random.Random(0).sample(examples["piqa"], 200)}
    limited = evaluate(model, tokenizer(), shuffled, Request(limit=100, **settings))
    assert len(limited.predictions) == 100
    assert scores_by_id(limited).items() <= scores_by_id(whole).items()
    drifts = {task: score.drift for task, score in whole.tasks.items()}
    assert whole.macro.close_calls == sum(lead(p) < drifts[p.task] for p in whole.predictions)


def test_the_next_questions_are_encoded_before_the_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, but for the one of each task that is tried, and those that are scored again alone."""
    order: list[str] = []

    def noted(name: str, function: Any) -> Any:
        return lambda *given: (order.append(name), function(*given))[1]

    monkeypatch.setattr(Cloze, "encode", noted("encode", Cloze.encode))
    monkeypatch.setattr(scorer_module, "wait_for", noted("wait", scorer_module.wait_for))
    examples = {"piqa": make_examples("piqa", BLOCK_SIZE + 30), "boolq": make_examples("boolq", 5)}
    evaluate(make_model(), tokenizer(), examples, Request(**CLOZE))
    blocks = [*["encode"] * (BLOCK_SIZE + 30), "wait", *["encode"] * 5, "wait", "wait"]
    assert order == [*["encode"] * 2, *blocks, *[*["encode"] * 4, "wait"] * 2]


@pytest.mark.parametrize(("limit", "alone"), [(2, 2), (64, 4), (192, 6), (None, 8)])
def test_the_drift_is_that_of_one_question_in_32_alone_but_of_4_to_8(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, alone: int
) -> None:
    """The largest change of a margin, by the scores of every one of them alone."""
    model = make_model(torch.bfloat16)
    examples = {"piqa": make_examples("piqa", 320)}
    found = []
    score = Choice.score

    def noted(self: Choice, asked: list[Example], **options: Any) -> list[Prediction]:
        predictions = score(self, asked, **options)
        found.append(predictions)
        return predictions

    monkeypatch.setattr(Choice, "score", noted)
    results = evaluate(model, tokenizer(), examples, Request(limit=limit, **CHOICE))
    batched = {p.id: p.scores for p in results.predictions}
    changes = []
    for prediction in found[-1]:
        moved = [a - b for a, b in zip(prediction.scores, batched[prediction.id], strict=True)]
        changes.append(max(moved) - min(moved))
    assert len(changes) == alone and results.macro.drift == max(changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_killed_evaluation_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = make_model(dtype)
    examples = {"piqa": make_examples("piqa", BLOCK_SIZE + 60), "boolq": make_examples("boolq", 30)}
    straight = evaluate(model, tokenizer(), examples, Request(**CHOICE), out=tmp_path / "straight")

    out = tmp_path / "killed"
    evaluate(model, tokenizer(), examples, Request(**CHOICE), out=out)
    (out / "results.json").unlink()
    assert not is_finished(out)
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    # In the middle of the second block, and in the middle of a line.
    (out / "predictions.jsonl").write_bytes(b"".join(lines[: BLOCK_SIZE + 10]) + lines[BLOCK_SIZE + 10][:25])

    scored = []
    score = Choice.score

    def counted(self: Choice, asked: list[Example], **options: Any) -> list[Prediction]:
        scored.append(len(asked))
        return score(self, asked, **options)

    monkeypatch.setattr(Choice, "score", counted)
    resumed = evaluate(model, tokenizer(), examples, Request(**CHOICE), out=out)
    assert scored == [60, 30, 4, 4], "the first block is not computed again"
    assert resumed.predictions == straight.predictions
    assert (out / "results.json").read_bytes() == (tmp_path / "straight/results.json").read_bytes()
    assert read_predictions(out) == read_predictions(tmp_path / "straight")


def rounded(results: bytes) -> Any:
    return json.loads(results, parse_float=lambda text: round(float(text), 4))


def test_results_on_disk_are_of_all_that_was_asked(tmp_path: Path) -> None:
    """In whatever pieces, they are those of one evaluation; a narrower one takes nothing away."""
    model = make_model()
    examples = {task: make_examples(task, 40) for task in ("piqa", "boolq", "obqa")}
    leaks = {}
    for task, rows in examples.items():
        leaks[task] = Leaks("the rows", tuple(example.id for example in rows[::3]))

    def into(name: str, *tasks: str, limit: int | None = None) -> bytes:
        asked = {task: examples[task] for task in tasks}
        request = Request(limit=limit, **CHOICE)
        evaluate(model, tokenizer(), asked, request, out=tmp_path / name, leaks=leaks)
        return (tmp_path / name / "results.json").read_bytes()

    whole = into("whole", *examples)
    assert into("whole", "obqa", limit=2) == whole
    assert into("whole", "boolq") == whole
    evaluate(model, tokenizer(), {"boolq": examples["boolq"]}, Request(**CHOICE), out=tmp_path / "whole")
    assert (tmp_path / "whole/results.json").read_bytes() == whole, "leaks that are unknown now were known before"
    assert json.loads(whole)["without_leaks"]["leaks"] == {task: 14 for task in examples}
    into("pieces", "piqa", "boolq", limit=30)
    into("pieces", "boolq", limit=10)
    mixed = json.loads(into("pieces", "obqa"))
    assert {task: score["n"] for task, score in mixed["tasks"].items()} == {"piqa": 30, "boolq": 30, "obqa": 40}
    assert mixed["micro"]["n"] == 100 and set(mixed["settings"]["data"]) == set(examples)
    assert rounded(into("pieces", "piqa", "boolq")) == rounded(whole), "but for the order in which sums are taken"
    (tmp_path / "pieces" / "predictions.jsonl").unlink()
    alone = json.loads(into("pieces", "obqa"))
    assert list(alone["tasks"]) == ["obqa"], "the others' predictions are gone"


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    model = make_model()
    examples = {"piqa": make_examples("piqa", 5)}
    evaluate(model, tokenizer(), examples, Request(**CHOICE), out=tmp_path, metadata={"model": "a"})
    with pytest.raises(UsageError, match=r"batch_tokens was 2048, is 16; metadata.model was a, is b") as caught:
        evaluate(
            model,
            tokenizer(),
            examples,
            Request(batch_tokens=16, **CHOICE),
            out=tmp_path,
            metadata={"model": "b"},
        )
    assert says(str(caught.value), "--out", "folder")
    changed = {"piqa": make_examples("piqa", 6)}
    with pytest.raises(UsageError, match=r"data\.piqa was"):
        evaluate(model, tokenizer(), changed, Request(**CHOICE), out=tmp_path, metadata={"model": "a"})


def answered_before_a_kill(folder: Path, ids: Sequence[str]) -> None:
    """Leaves the answers to these questions alone in a finished evaluation's folder."""
    file = folder / "predictions.jsonl"
    lines = [line for line in file.read_text().splitlines(keepends=True) if json.loads(line)["id"] in ids]
    file.write_text("".join(lines))
    (folder / "results.json").unlink()


@pytest.mark.parametrize("first", [True, False])
def test_a_smaller_limit_ends_an_interrupted_evaluation_of_the_first_questions_alone(
    tmp_path: Path, first: bool
) -> None:
    """Several processes begin with the longest questions: what they have answered before a kill is no random sample,
    and stays out of the averages until the rest is there."""
    questions = {"piqa": make_examples("piqa", 40)}
    model = make_model()
    evaluate(model, tokenizer(), questions, Request(**CHOICE), out=tmp_path)
    ordered = sorted((example.id for example in questions["piqa"]), key=order_key)
    answered = ordered[20:]
    if first:
        answered = ordered[:20]
    answered_before_a_kill(tmp_path, answered)
    found = evaluate(model, tokenizer(), questions, Request(**CHOICE, limit=5), out=tmp_path)
    assert found.tasks["piqa"].n == 5
    counts = {task: score.n for task, score in read_results(tmp_path).tasks.items()}
    unfinished = read_evaluation(tmp_path).unfinished
    if first:
        assert counts == {"piqa": 20} and not unfinished
    else:
        assert counts == {} and unfinished == {"piqa": (25, 40)}
    evaluate(model, tokenizer(), questions, Request(**CHOICE), out=tmp_path)
    assert read_results(tmp_path).tasks["piqa"].n == 40 and not read_evaluation(tmp_path).unfinished


def test_where_the_questions_lie_is_no_other_setting_unless_some_lie_elsewhere(tmp_path: Path) -> None:
    """The hash of a task's questions says what they are; ``metadata.source``, which cards name, is of all tasks."""

    def ask(*tasks: str, source: str) -> int:
        asked = {task: make_examples(task, 5) for task in tasks}
        evaluate(
            make_model(),
            tokenizer(),
            asked,
            Request(**CHOICE),
            out=tmp_path,
            metadata={"source": source},
        )
        return len(read_predictions(tmp_path))

    assert ask("piqa", source="rows") == 5
    assert ask("piqa", "boolq", source="/elsewhere/rows") == 10
    with pytest.raises(UsageError, match=r"metadata.source was /elsewhere/rows, is hub\)"):
        ask("obqa", source="hub")


def test_a_folder_of_other_versions_or_of_unknown_ones_is_refused_but_read(tmp_path: Path) -> None:
    model = make_model()
    examples = {"piqa": make_examples("piqa", 5)}
    results = evaluate(model, tokenizer(), examples, Request(**CHOICE), out=tmp_path)
    head = json.loads((tmp_path / "settings.json").read_text())
    made_with = head["settings"]["made_with"]
    for key in ("moslora", "torch", "transformers"):
        assert made_with[key] == version(key)
        for then, said in ({**made_with, key: "0.1"}, r"'0\.1'"), ({}, ".*"):
            other = {**head, "settings": head["settings"] | {"made_with": then}}
            (tmp_path / "settings.json").write_text(json.dumps(other))
            before = {path: path.read_bytes() for path in tmp_path.iterdir()}
            with pytest.raises(UsageError, match=rf"{key} was {said}, is {re.escape(version(key))}"):
                evaluate(model, tokenizer(), examples, Request(**CHOICE), out=tmp_path)
            assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    old = json.loads((tmp_path / "results.json").read_text())
    del old["settings"]["made_with"]
    (tmp_path / "results.json").write_text(json.dumps(old))
    assert read_results(tmp_path).tasks == results.tasks


def test_a_folder_of_another_tokenizer_or_chat_template_is_refused(tmp_path: Path) -> None:
    """The template matters where the format is chat."""
    model = make_model()
    examples = {"piqa": make_examples("piqa", 5)}
    chat: dict[str, Any] = {"protocol": "generate", "format": "chat"}
    one = copy.deepcopy(tokenizer())
    other = copy.deepcopy(tokenizer())
    one.chat_template = "{{ messages[0].content }} so "
    other.chat_template = "{{ messages[0].content }} thus "
    for name, request in (("chat", chat), ("label", CHOICE)):
        evaluate(model, one, examples, Request(**request), out=tmp_path / name)
    with pytest.raises(UsageError, match=r"chat_template was \w+, is \w+"):
        evaluate(model, other, examples, Request(**chat), out=tmp_path / "chat")
    evaluate(model, other, examples, Request(**CHOICE), out=tmp_path / "label")
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UsageError, match=r"tokenizer was \w+, is \w+"):
        evaluate(model, other, examples, Request(**CHOICE), out=tmp_path / "label")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    model = make_model()
    examples = {"piqa": make_examples("piqa", 5)}
    evaluate(model, tokenizer(), examples, Request(**CHOICE), out=tmp_path)
    file = tmp_path / "predictions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "{}\n", *lines[2:]]))
    with pytest.raises(MosloraError, match=r"predictions\.jsonl:2: not a prediction"):
        evaluate(model, tokenizer(), examples, Request(**CHOICE), out=tmp_path)
    file.write_text("".join([*lines, lines[0]]))
    with pytest.raises(MosloraError, match=r"predictions\.jsonl:6: "):
        _ = read_predictions(tmp_path)


def test_dropout_left_on_is_refused() -> None:
    model = make_model()
    model.model.layers[1].mlp.train()
    with pytest.raises(MosloraError, match=r"model\.layers\.1\.mlp.*model\.eval\(\)"):
        evaluate(model, tokenizer(), all_tasks(1), Request(**CHOICE))


def test_all_unusable_tasks_are_named_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Choice, "score", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(
        UsageError, match=r"task siqa, format cloze, 3 options: .* use evaluation.protocol=cloze"
    ) as caught:
        evaluate(make_model(), tokenizer(), all_tasks(2), Request(protocol="choice", format="cloze"))
    assert len(str(caught.value).splitlines()) == 7, "all but boolq, whose options are one token each"


def with_options(count: int, number: int) -> Example:
    """A question of a task of ours, with ``count`` options."""
    wording = Numbered(head="Choose: ", stem="answer")
    return Example(
        f"mine/test/{number}", "mine", f"which {number}?", tuple("abcdefghijklm"[:count]), 0, wording=wording
    )


@pytest.mark.parametrize("format", ["label", "llm-adapters"])
def test_a_late_question_of_ten_options_is_refused_before_anything_is_scored(
    monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    """Where digits are tokens, "answer10" is one token longer than "answer1"; the other protocols score it."""
    rows = [with_options(4, number) for number in range(99)] + [with_options(10, 99)]
    asked = {"piqa": make_examples("piqa", 3), "mine": rows}
    for request in (Request(protocol="generate", format=format), Request(**CLOZE)):
        results = evaluate(make_model(), tokenizer(), {"mine": rows[-2:]}, request)
        assert results.tasks["mine"].n == 2
    monkeypatch.setattr(Choice, "score", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(UsageError, match=r"task mine, format .*, 10 options: .* use evaluation.protocol=cloze"):
        evaluate(make_model(), tokenizer(), asked, Request(protocol="choice", format=format))


def test_a_task_without_questions_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Choice, "score", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(UsageError, match="siqa, obqa: no question"):
        evaluate(make_model(), tokenizer(), {**all_tasks(1), "obqa": [], "siqa": []}, Request(**CHOICE))


def test_results_on_disk_hold_what_was_returned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = {"hellaswag": make_examples("hellaswag", 150), "siqa": make_examples("siqa", 20)}
    metadata = {"model": "tiny", "step": 3}
    results = evaluate(make_model(), tokenizer(), examples, Request(limit=70, **CLOZE), out=tmp_path, metadata=metadata)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("  hellaswag: 64/90 questions, about 0.0 min left") and "70/90" in second
    assert last.startswith("  siqa: 90/90 questions")
    read = read_evaluation(tmp_path)
    assert is_finished(tmp_path) and read_results(tmp_path) == results and read.settings == results.settings
    assert tuple(read_predictions(tmp_path)) == results.predictions
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["settings"]["dtype"], written["settings"]["primary"]) == ("float32", "accuracy_per_character")
    assert written["settings"]["metadata"] == metadata and written["settings"]["data"].keys() == examples.keys()
    assert {task: score["n"] for task, score in written["tasks"].items()} == {"hellaswag": 70, "siqa": 20}
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "predictions.jsonl", "results.json"}
    assert "parse_rate" not in written["macro"]


def test_a_line_of_a_prediction_says_nothing_twice(tmp_path: Path) -> None:
    """Lines of earlier versions, with every field, are read as well."""
    results = evaluate(make_model(torch.bfloat16), tokenizer(), all_tasks(12), Request(**CLOZE))
    for prediction in results.predictions:
        line = prediction.to_json()
        assert Prediction.from_json(line) == Prediction.from_json(json.dumps(vars(prediction))) == prediction
        assert json.loads(line).keys() == {"id", "gold", "scores", "characters"}
        assert prediction.scores == tuple(round(score, 6) for score in prediction.scores)
    assert sum(len(prediction.to_json()) + 1 for prediction in results.predictions) < 105 * len(results.predictions)
    written = Prediction("boolq/test/1", "boolq", 1, None, text="so", answer="")
    expected = {"id": "boolq/test/1", "gold": 1, "prediction": None, "text": "so", "answer": ""}
    assert json.loads(written.to_json()) == expected
    assert Prediction.from_json(written.to_json()) == written
