"""LLM-Adapters' procedure: its expressions, and text that is what the model would write."""

import re

import pytest
import torch

from evaluation_kit import all_tasks, make_examples, make_model, tokenizer
from moslora.data.encode import Encoder
from moslora.errors import MosloraError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.generate import Decided, Generate, find_answer
from moslora.prompts import FORMATS, labels
from moslora.tasks import Example, Numbered

EXPRESSIONS = {  # commonsense_evaluate.py, extract_answer
    "boolq": r"true|false",
    "piqa": r"solution1|solution2",
    "siqa": r"answer1|answer2|answer3|answer4|answer5",
    "arc_easy": r"answer1|answer2|answer3|answer4|answer5",
    "arc_challenge": r"answer1|answer2|answer3|answer4|answer5",
    "obqa": r"answer1|answer2|answer3|answer4|answer5",
    "hellaswag": r"ending1|ending2|ending3|ending4",
    "winogrande": r"option1|option2",
}
TEXTS = [
    "the correct answer is {}",
    "  {0}{0}",
    "not {} but answer9, solution3",
    "untrue: {}",
    "THE ANSWER IS FALSE",
    "",
    "none\n### Response:\n{}",
]


@pytest.mark.parametrize("task", EXPRESSIONS)
@pytest.mark.parametrize("text", TEXTS)
def test_answers_are_what_the_official_script_finds(task: str, text: str) -> None:
    example = make_examples(task, 1)[0]
    for label in labels(example):
        output = FORMATS["llm-adapters"].generation_prompt(example) + text.format(label)
        official = re.findall(EXPRESSIONS[task], output.split("### Response:")[1].strip())
        assert find_answer(text.format(label), example) == (official[0] if official else "")


@pytest.mark.parametrize("format", ["label", "llm-adapters"])
def test_greedy_text_is_the_most_likely_token_32_times(format: str) -> None:
    model, encoder = make_model(), Encoder(tokenizer(), max_length=None)
    for prediction in Generate(model, encoder, FORMATS[format], beams=1, batch_tokens=1_000).score(
        make_examples("siqa", 3)
    ):
        example = make_examples("siqa", 3)[int(prediction.id.rpartition("/")[2])]
        ids = encoder.encode(FORMATS[format].generation_prompt(example), "", eos=False).ids
        start = len(ids)
        with torch.inference_mode():
            while len(ids) < start + 32 and ids[-1] != tokenizer().eos_token_id:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert prediction.text == tokenizer().decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    "text", ["the correct answer is answer2 and not answer1", "answer9 answer3", "no", "a\n### Response: answer1"]
)
def test_writing_ends_where_more_text_changes_no_answer(text: str) -> None:
    """Token by token: the answer at the end of a row is that of the whole text, and no token comes after it."""
    reader, asked = tokenizer(), make_examples("obqa", 1)[0]
    ids = reader(text + "." * 8, add_special_tokens=False)["input_ids"]
    decided = Decided(reader, [asked], start=3)
    ends = [bool(decided(torch.tensor([[9, 9, 9, *ids[:n]]]), None)[0]) for n in range(1, len(ids) + 1)]
    whole = reader.decode(ids)
    assert find_answer(decided.texts[0], asked) == find_answer(whole, asked)
    certain = [
        bool(find_answer(t, asked)) or "### Response:" in t
        for t in (reader.decode(ids[:n]) for n in range(1, len(ids) + 1))
    ]
    assert ends == certain


@pytest.mark.parametrize(
    ("text", "answer", "written"),
    [
        ("is answer10 or so", "answer10", "is answer10"),
        ("is answer1 or answer10", "answer1", "is answer1 "),
        ("is answer12", "answer12", "is answer12"),
        ("is answer1", "answer1", "is answer1"),
    ],
)
def test_a_label_that_begins_another_is_not_decided_yet(text: str, answer: str, written: str) -> None:
    """With twelve options, character by character: the answer is that of the whole text."""
    wording = Numbered(head="Choose: ", stem="answer")
    asked = Example("own/test/0", "own", "which?", tuple("abcdefghijkl"), 0, wording=wording)
    reader = tokenizer()
    ids = [id for character in text for id in reader(character, add_special_tokens=False)["input_ids"]]
    assert len(ids) == len(text)
    decided = Decided(reader, [asked], start=1)
    ends = [bool(decided(torch.tensor([[9, *ids[:n]]]), None)[0]) for n in range(1, len(ids) + 1)]
    assert find_answer(decided.texts[0], asked) == find_answer(text, asked) == answer
    assert decided.texts[0] == written and any(ends) == (text != "is answer1")


def test_beams_search() -> None:
    """Four beams find other texts than greedy somewhere; a lost setting would leave them all equal."""
    model, encoder = make_model(), Encoder(tokenizer(), max_length=None)
    examples = make_examples("piqa", 4)
    texts = {
        beams: [
            p.text for p in Generate(model, encoder, FORMATS["label"], beams=beams, batch_tokens=1_000).score(examples)
        ]
        for beams in (1, 4)
    }
    assert texts[1] != texts[4]


def test_the_results_report_how_many_texts_held_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    written = iter(["it is true", "false, then", "I cannot say", "true or false"])
    monkeypatch.setattr(Generate, "compute", lambda self, questions: [next(written) for _ in questions])
    results = evaluate(
        make_model(), tokenizer(), {"boolq": make_examples("boolq", 4)}, Request(protocol="generate", format="label")
    )
    assert results.tasks["boolq"].parse_rate == 0.75
    assert sorted(str(p.prediction) for p in results.predictions) == ["0", "0", "1", "None"]
    assert results.tasks["boolq"].accuracy == sum(p.prediction == p.gold for p in results.predictions) / 4
    assert results.drift is None
    assert results.table()[0] == ["task", "n", "majority class", "accuracy", "parsed"]


def test_a_label_of_no_option_is_an_answer_but_never_right() -> None:
    scorer = Generate(
        make_model(), Encoder(tokenizer(), max_length=None), FORMATS["label"], beams=1, batch_tokens=1_000
    )
    object.__setattr__(scorer, "compute", lambda questions: ["answer5"])
    prediction = scorer.score(make_examples("siqa", 1))[0]
    assert (prediction.answer, prediction.prediction) == ("answer5", None)


def test_a_format_without_labels_cannot_generate() -> None:
    with pytest.raises(MosloraError, match="format cloze"):
        evaluate(make_model(), tokenizer(), all_tasks(1), Request(protocol="generate", format="cloze"))
