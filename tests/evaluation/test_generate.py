"""LLM-Adapters' procedure: its expressions, and text that is what the model would write."""

import re

import pytest
import torch

from evaluation_kit import all_tasks, make_examples, make_model, tokenizer
from moslora.data.encode import Encoder
from moslora.errors import MosloraError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.generate import Decided, Generate, find_answer
from moslora.prompts.formats import FORMATS
from moslora.prompts.instructions import answer_pattern, labels
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
    assert answer_pattern(example).pattern == EXPRESSIONS[task]
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


ENDS = [
    (4, "the correct answer is answer2 and not answer1", "answer2", "the correct answer is answer2"),
    (4, "answer9 answer3", "answer3", "answer9 answer3"),
    (4, "no", "", "no"),
    (4, "a\n### Response: answer1", "", "a\n### Response:"),
    (12, "is answer10 or so", "answer10", "is answer10"),
    (12, "is answer1 or answer10", "answer1", "is answer1 "),
    (12, "is answer12", "answer12", "is answer12"),
    (12, "is answer1", "answer1", "is answer1"),
]


@pytest.mark.parametrize(("options", "text", "answer", "written"), ENDS)
def test_writing_ends_where_more_text_changes_no_answer(options: int, text: str, answer: str, written: str) -> None:
    """Character by character: the answer is that of the whole text. A label that begins another is not decided yet."""
    wording = Numbered(head="Choose: ", stem="answer")
    asked = Example("own/test/0", "own", "which?", tuple("abcdefghijkl"[:options]), 0, wording=wording)
    reader = tokenizer()
    ids = [id for character in text for id in reader(character, add_special_tokens=False)["input_ids"]]
    assert len(ids) == len(text)
    decided = Decided(reader, [asked], start=1)
    ends = [bool(decided(torch.tensor([[9, *ids[:n]]]), None)[0]) for n in range(1, len(ids) + 1)]
    assert find_answer(written, asked) == find_answer(text, asked) == answer
    assert ends == [n >= len(written) and text not in ("no", "is answer1") for n in range(1, len(ids) + 1)]


def test_the_results_report_how_many_texts_held_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label of no option is an answer, but never right."""
    written = iter(["it is answer1", "answer2, then", "I cannot say", "answer5 or answer1"])
    monkeypatch.setattr(Generate, "compute", lambda self, questions: lambda: [next(written) for _ in questions])
    request = Request(protocol="generate", format="label")
    results = evaluate(make_model(), tokenizer(), {"siqa": make_examples("siqa", 4)}, request)
    assert results.tasks["siqa"].parse_rate == 0.75
    assert sorted(str(p.prediction) for p in results.predictions) == ["0", "1", "None", "None"]
    assert results.tasks["siqa"].accuracy == sum(p.prediction == p.gold for p in results.predictions) / 4
    assert results.macro.drift is None
    assert results.table()[0] == ["task", "n", "majority class", "accuracy", "95 % interval", "parsed"]


def test_a_format_without_labels_cannot_generate() -> None:
    with pytest.raises(MosloraError, match="format cloze"):
        evaluate(make_model(), tokenizer(), all_tasks(1), Request(protocol="generate", format="cloze"))
