"""Evaluations as a whole: what moves a result, what is refused, and what is left on the disk."""

import copy
import json
import random
import re
import shutil
from importlib.metadata import version
from typing import Any

import pytest
import torch
from tokenizers import normalizers

from changes_kit import edit_json
from evaluation_kit import all_tasks, make_examples, make_model, read_results, tokenizer
from moslora.errors import MosloraError, UsageError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.batches import BLOCK_SIZE, blocks
from moslora.evaluation.scorers import Choice
from moslora.runs.answers import order_key
from moslora.runs.conditions import Leaks
from moslora.runs.evaluation import is_finished, read_evaluation, read_predictions
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, Numbered

PIQA = {"piqa": make_examples("piqa", 5)}


def ask(out, *, by=None, model=None, questions=PIQA, request=None):
    """An evaluation of a few questions in a folder."""
    return evaluate(model or make_model(), by or tokenizer(), questions, Request(**(request or CHOICE)), out=out)


CHOICE: dict[str, Any] = {"protocol": "choice", "format": "label"}
CLOZE: dict[str, Any] = {"protocol": "cloze", "format": "cloze"}


def lead(prediction):
    """The best deciding score minus the second best."""
    second, best = sorted(prediction.deciding_scores)[-2:]
    return best - second


def scores_by_id(results):
    return {prediction.id: prediction.scores for prediction in results.predictions}


@pytest.mark.parametrize("settings", [CHOICE, CLOZE], ids=["choice", "cloze"])
def test_bfloat16_scores_depend_on_the_ids_alone(settings):
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


def test_skipped_questions_are_the_first_of_the_fixed_order(tmp_path):
    """The others score as in the whole evaluation, bit for bit, and a set without its own number skips none."""
    model = make_model(torch.bfloat16)
    examples = {"piqa": make_examples("piqa", 200), "boolq": make_examples("boolq", 30)}
    whole = evaluate(model, tokenizer(), examples, Request(**CLOZE))
    request = Request(limit=100, skip={"piqa": 64}, **CLOZE)
    found = evaluate(model, tokenizer(), examples, request, out=tmp_path / "e")
    in_order = sorted((row.id for row in examples["piqa"]), key=order_key)
    wanted = {*in_order[64:164], *(row.id for row in examples["boolq"])}
    assert scores_by_id(found) == {id: scores for id, scores in scores_by_id(whole).items() if id in wanted}
    assert read_evaluation(tmp_path / "e").conditions.skipped == {"piqa": 64}
    records = json.loads((tmp_path / "e/settings.json").read_text(encoding="utf-8"))["tasks"]
    assert [records[task]["asked"] for task in examples] == [100, 30]


def test_blocks_larger_than_skip_keep_their_questions():
    rows = make_examples("piqa", 200)
    whole, *_ = blocks(rows, limit=None, exact=False, size=128)
    first, second = blocks(rows, limit=70, exact=False, skip=64, size=128)
    assert (first.computed, first.wanted) == (whole.computed, whole.computed[64:])
    assert len(second.computed) == 72 and second.wanted == second.computed[:6]


def test_a_folder_goes_on_with_what_it_skipped(tmp_path):
    """Other sets may skip another number; a smaller evaluation takes nothing away."""
    some = {"piqa": make_examples("piqa", 100)}
    more = {**some, "boolq": make_examples("boolq", 70)}
    ask(tmp_path / "e", questions=some, request=CHOICE | {"skip": 64})
    with pytest.raises(UsageError, match=r"skipped\.piqa was 64, is 0.* --out"):
        ask(tmp_path / "e", questions=some)
    found = ask(tmp_path / "e", questions=more, request=CHOICE | {"skip": {"piqa": 64}, "limit": 10})
    assert {task: score.n for task, score in found.tasks.items()} == {"piqa": 10, "boolq": 10}
    assert {task: len(of_task.ids) for task, of_task in read_evaluation(tmp_path / "e").complete.tasks.items()} == {
        "piqa": 36,
        "boolq": 10,
    }
    with pytest.raises(UsageError, match=r"evaluation\.skip.*piqa"):
        ask(tmp_path / "none", questions=some, request=CHOICE | {"skip": 128})


@pytest.mark.parametrize(("limit", "alone"), [(2, 2), (64, 4), (192, 6), (None, 8)])
def test_drift_is_of_one_question_in_32(monkeypatch, limit, alone):
    """The largest change of a margin, by the scores of every one of them alone."""
    model = make_model(torch.bfloat16)
    examples = {"piqa": make_examples("piqa", 320)}
    found = []
    read = Choice.read

    def noted(self, question, output):
        found.append(read(self, question, output))
        return found[-1]

    monkeypatch.setattr(Choice, "read", noted)
    results = evaluate(model, tokenizer(), examples, Request(limit=limit, **CHOICE))
    batched = {p.id: p.scores for p in results.predictions}
    changes = []
    for prediction in found[len(results.predictions) :][-alone:]:
        moved = [a - b for a, b in zip(prediction.scores, batched[prediction.id], strict=True)]
        changes.append(max(moved) - min(moved))
    assert len(changes) == alone and results.macro.drift == max(changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_killed_evaluation_goes_on_to_the_same_bits(tmp_path, monkeypatch, dtype):
    """In the middle of the second block, and in the middle of a line."""
    model = make_model(dtype)
    examples = {"piqa": make_examples("piqa", BLOCK_SIZE + 60), "boolq": make_examples("boolq", 30)}
    straight = evaluate(model, tokenizer(), examples, Request(**CHOICE), out=tmp_path / "straight")
    out = shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    (out / "results.json").unlink()
    assert not is_finished(out)
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[: BLOCK_SIZE + 10]) + lines[BLOCK_SIZE + 10][:25])
    scored = []
    ask_model = Choice.ask

    def counted(self, questions, model):
        scored.append(len(questions))
        return ask_model(self, questions, model)

    monkeypatch.setattr(Choice, "ask", counted)
    resumed = evaluate(model, tokenizer(), examples, Request(**CHOICE), out=out)
    assert scored == [60, 30, 4, 4], "the first block is not computed again"
    assert resumed.predictions == straight.predictions
    assert (out / "results.json").read_bytes() == (tmp_path / "straight/results.json").read_bytes()
    assert read_predictions(out) == read_predictions(tmp_path / "straight")


def rounded(results):
    return json.loads(results, parse_float=lambda text: round(float(text), 4))


def test_results_on_disk_are_of_all_that_was_asked(tmp_path):
    """In whatever pieces, they are those of one evaluation; a narrower one takes nothing away."""
    model = make_model()
    examples = {task: make_examples(task, 40) for task in ("piqa", "boolq", "obqa")}
    leaks = {task: Leaks("the rows", tuple(row.id for row in rows[::3])) for task, rows in examples.items()}

    def into(name, *tasks, limit=None, leaks=leaks):
        asked = {task: examples[task] for task in tasks}
        evaluate(model, tokenizer(), asked, Request(limit=limit, **CHOICE), out=tmp_path / name, leaks=leaks)
        return (tmp_path / name / "results.json").read_bytes()

    whole = into("whole", *examples)
    assert into("whole", "obqa", limit=2) == into("whole", "boolq") == whole
    assert into("whole", "boolq", leaks=None) == whole, "leaks that are unknown now were known before"
    assert json.loads(whole)["without_leaks"]["leaks"] == {task: 14 for task in examples}
    into("pieces", "piqa", "boolq", limit=30)
    into("pieces", "boolq", limit=10)
    mixed = json.loads(into("pieces", "obqa"))
    assert {task: score["n"] for task, score in mixed["tasks"].items()} == {"piqa": 30, "boolq": 30, "obqa": 40}
    assert mixed["micro"]["n"] == 100 and set(mixed["settings"]["data"]) == set(examples)
    assert rounded(into("pieces", "piqa", "boolq")) == rounded(whole), "but for the order in which sums are taken"
    (tmp_path / "pieces" / "predictions.jsonl").unlink()
    assert list(json.loads(into("pieces", "obqa"))["tasks"]) == ["obqa"], "the others' predictions are gone"


def test_predictions_of_unknown_settings_are_refused(tmp_path):
    ask(tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UsageError, match=r"settings\.json"):
        ask(tmp_path)


def test_other_settings_are_refused_by_name(tmp_path):
    """A chat template matters where the format is chat."""
    chat = {"protocol": "generate", "format": "chat"}
    one, other, lower = (copy.deepcopy(tokenizer()) for _ in range(3))
    one.chat_template = "{{ messages[0].content }} so "
    other.chat_template = "{{ messages[0].content }} thus "
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    ask(tmp_path / "label", by=one)
    ask(tmp_path / "chat", by=one, request=chat)
    changes = [
        ("label", {"request": CHOICE | {"batch_tokens": 16}}, r"batch_tokens was 2048, is 16.* --out"),
        ("label", {"model": make_model(torch.bfloat16)}, r"dtype was float32, is bfloat16"),
        ("label", {"questions": {"piqa": make_examples("piqa", 6)}}, r"data\.piqa was"),
        ("label", {"by": lower}, r"tokenizer was \w+, is \w+"),
        ("chat", {"request": chat, "by": other}, r"chat_template was \w+, is \w+"),
    ]
    for name, change, fault in changes:
        with pytest.raises(UsageError, match=f"(?s){fault}"):
            ask(tmp_path / name, **{"by": one} | change)
    ask(tmp_path / "label", by=other)


@pytest.mark.parametrize("first", [True, False])
def test_smaller_limit_ends_interrupted_evaluation(tmp_path, first):
    """A server may answer short questions first: what it has answered before a kill is no random sample, and stays out
    of the averages until the rest is there."""
    questions = {"piqa": make_examples("piqa", 40)}
    ask(tmp_path, questions=questions)
    ordered = sorted((example.id for example in questions["piqa"]), key=order_key)
    answered = ordered[:20] if first else ordered[20:]
    file = tmp_path / "predictions.jsonl"
    lines = [line for line in file.read_text().splitlines(keepends=True) if json.loads(line)["id"] in answered]
    file.write_text("".join(lines))
    (tmp_path / "results.json").unlink()
    found = ask(tmp_path, questions=questions, request=CHOICE | {"limit": 5})
    assert found.tasks["piqa"].n == 5
    counts = {task: score.n for task, score in read_results(tmp_path).tasks.items()}
    unfinished = read_evaluation(tmp_path).unfinished
    assert (counts, unfinished) == (({"piqa": 20}, {}) if first else ({}, {"piqa": (25, 40)}))
    ask(tmp_path, questions=questions)
    assert read_results(tmp_path).tasks["piqa"].n == 40 and not read_evaluation(tmp_path).unfinished


def test_source_may_change_if_all_tasks_are_asked_again(tmp_path):
    """The hash of a task's questions says what they are; the source, which cards name, is of all tasks."""
    ask(tmp_path, request=CHOICE | {"source": "rows"})
    more = PIQA | {"boolq": make_examples("boolq", 5)}
    ask(tmp_path, questions=more, request=CHOICE | {"source": "/elsewhere/rows"})
    assert len(read_predictions(tmp_path)) == 10
    with pytest.raises(UsageError, match=r"source was /elsewhere/rows, is hub\)"):
        ask(tmp_path, questions={"obqa": make_examples("obqa", 5)}, request=CHOICE | {"source": "hub"})


def test_folder_of_other_versions_is_refused_but_read(tmp_path):
    results = ask(tmp_path)
    head = json.loads((tmp_path / "settings.json").read_text())
    versions = head["settings"]["versions"]
    for key in ("moslora", "torch", "transformers"):
        assert versions[key] == version(key)
        for then in ({**versions, key: "0.1"}, {}):
            edit_json(tmp_path / "settings.json", settings=head["settings"] | {"versions": then})
            before = {path: path.read_bytes() for path in tmp_path.iterdir()}
            with pytest.raises(UsageError, match=rf"{key} was .*, is {re.escape(version(key))}"):
                ask(tmp_path)
            assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_results(tmp_path).tasks == results.tasks


def test_a_damaged_line_is_named(tmp_path):
    ask(tmp_path)
    file = tmp_path / "predictions.jsonl"
    first, _, *others = file.read_text().splitlines(keepends=True)
    for lines, place in (([first, "{}\n", *others], 2), ([first, first], 2)):
        file.write_text("".join(lines))
        with pytest.raises(MosloraError, match=rf"predictions\.jsonl:{place}: "):
            ask(tmp_path)


def test_dropout_left_on_is_refused():
    model = make_model()
    model.model.layers[1].mlp.train()
    with pytest.raises(MosloraError, match=r"model\.layers\.1\.mlp.*model\.eval\(\)"):
        evaluate(model, tokenizer(), all_tasks(1), Request(**CHOICE))


def test_all_unusable_tasks_are_named_first(monkeypatch):
    """With cloze every set but boolq, whose options are one token each."""
    monkeypatch.setattr(Choice, "ask", lambda *_, **__: pytest.fail("scored"))
    for questions, format, named, tasks in (
        (all_tasks(2), "cloze", "task siqa, format cloze, 3 options: .* use evaluation.protocol=cloze", 7),
        ({**all_tasks(1), "obqa": [], "siqa": []}, "label", "siqa, obqa: no question", 1),
    ):
        with pytest.raises(UsageError, match=named) as caught:
            evaluate(make_model(), tokenizer(), questions, Request(protocol="choice", format=format))
        assert len({line.partition(",")[0] for line in str(caught.value).splitlines()}) == tasks


@pytest.mark.parametrize("format", ["label", "llm-adapters"])
def test_late_question_of_ten_options_is_refused_first(monkeypatch, format):
    """Where digits are tokens, "answer10" is one token longer than "answer1"; the other protocols score it."""
    wording = Numbered(head="Choose: ", stem="answer")
    rows = []
    for number, count in enumerate([4] * 9 + [10]):
        options = tuple("abcdefghijklm"[:count])
        rows.append(Example(f"mine/test/{number}", "mine", f"which {number}?", options, 0, wording=wording))
    for request in (Request(protocol="generate", format=format), Request(**CLOZE)):
        results = evaluate(make_model(), tokenizer(), {"mine": rows[-2:]}, request)
        assert results.tasks["mine"].n == 2
    monkeypatch.setattr(Choice, "ask", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(UsageError, match=r"task mine, format .*, 10 options: .* use evaluation.protocol=cloze"):
        evaluate(make_model(), tokenizer(), PIQA | {"mine": rows}, Request(protocol="choice", format=format))


def test_a_line_of_a_prediction_says_nothing_twice():
    """Lines of earlier versions, with every field, are read as well."""
    results = evaluate(make_model(torch.bfloat16), tokenizer(), all_tasks(3), Request(**CLOZE))
    for prediction in results.predictions:
        line = prediction.to_json()
        assert Prediction.from_json(line) == Prediction.from_json(json.dumps(vars(prediction))) == prediction
        assert json.loads(line).keys() == {"id", "gold", "scores", "characters"}
        assert prediction.scores == tuple(round(score, 6) for score in prediction.scores)
    written = Prediction("boolq/test/1", "boolq", 1, None, text="so", answer="")
    expected = {"id": "boolq/test/1", "gold": 1, "prediction": None, "text": "so", "answer": ""}
    assert json.loads(written.to_json()) == expected and Prediction.from_json(written.to_json()) == written
