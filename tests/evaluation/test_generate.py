"""LLM-Adapters' procedure: its expressions, and text that is what the model would write."""

import re
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from evaluation_kit import make_examples, make_model, tokenizer
from moslora.data.encode import Encoder
from moslora.errors import MosloraError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.model import Local
from moslora.evaluation.scorers import Generate, find_answer, is_decided
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
def test_answers_are_what_the_official_script_finds(task, text):
    example = make_examples(task, 1)[0]
    assert answer_pattern(example).pattern == EXPRESSIONS[task]
    for label in labels(example):
        output = FORMATS["llm-adapters"].generation_prompt(example) + text.format(label)
        response = output.split("### Response:")[1].strip()
        official = re.findall(EXPRESSIONS[task], response)
        expected = ""
        if official:
            expected = official[0]
        assert find_answer(text.format(label), example) == expected


@pytest.mark.parametrize("format", ["label", "llm-adapters"])
def test_greedy_text_is_the_most_likely_token_32_times(format):
    model = make_model()
    encoder = Encoder(tokenizer(), max_length=None)
    examples = {example.id: example for example in make_examples("siqa", 3)}
    scorer = Generate(encoder, FORMATS[format])
    for prediction in scorer.score(list(examples.values()), Local(model, tokenizer(), batch_tokens=1_000)):
        example = examples[prediction.id]
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
    (12, "is answer1 or answer10", "answer1", "is answer1 "),
    (12, "is answer12", "answer12", "is answer12"),
    (12, "is answer1", "answer1", "is answer1"),
]


@pytest.mark.parametrize(("options", "text", "answer", "written"), ENDS)
def test_writing_ends_where_more_text_changes_no_answer(options, text, answer, written):
    """Character by character: the answer is that of the whole text. A label that begins another is not decided yet."""
    wording = Numbered(head="Choose: ", stem="answer")
    asked = Example("own/test/0", "own", "which?", tuple("abcdefghijkl"[:options]), 0, wording=wording)
    reader = tokenizer()
    ids = []
    for character in text:
        ids += reader(character, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert find_answer(written, asked) == find_answer(text, asked) == answer
    has_end = text not in ("no", "is answer1")
    for count in range(1, len(ids) + 1):
        so_far = reader.decode(ids[:count], skip_special_tokens=True)
        assert is_decided(so_far, asked) == (has_end and count >= len(written)), so_far


def test_the_results_report_how_many_texts_held_an_answer(monkeypatch):
    """A label of no option is an answer, but never right."""
    written = iter(["it is answer1", "answer2, then", "I cannot say", "answer5 or answer1"])

    def write(_, prompts, *rest, **how):
        return lambda: iter([{place: next(written) for place in range(len(prompts))}])

    monkeypatch.setattr(Local, "write", write)
    request = Request(protocol="generate", format="label")
    results = evaluate(make_model(), tokenizer(), {"siqa": make_examples("siqa", 4)}, request)
    assert results.tasks["siqa"].parse_rate == 0.75 and results.macro.drift is None
    assert sorted(str(p.prediction) for p in results.predictions) == ["0", "1", "None", "None"]
    assert results.tasks["siqa"].accuracy == sum(p.prediction == p.gold for p in results.predictions) / 4


GENERATE: dict[str, Any] = {"protocol": "generate", "format": "label"}
OWN_SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"min_new_tokens": 20, "min_length": 200},
    {"suppress_tokens": list(range(2, 300))},
    {"do_sample": True, "temperature": 9.0, "top_k": 3},
    {"num_return_sequences": 2},
]
"""What a model's generation_config.json may say."""


def texts(model, *, beams):
    request = Request(**GENERATE, beams=beams)
    found = evaluate(model, tokenizer(), {"siqa": make_examples("siqa", 4)}, request).predictions
    return {prediction.id: prediction.text for prediction in found}


@pytest.mark.parametrize("own", OWN_SETTINGS, ids=lambda own: next(iter(own)))
@pytest.mark.parametrize("beams", [1, 3])
def test_a_models_own_generation_settings_change_no_text(own, beams):
    model = make_model()
    model.generation_config = GenerationConfig()
    plain = texts(model, beams=beams)
    for field, value in own.items():
        setattr(model.generation_config, field, value)
    before = model.generation_config.to_dict()
    assert texts(model, beams=beams) == plain
    assert model.generation_config.to_dict() == before, "they are the model's again"


def test_beams_give_what_transformers_alone_gives():
    """Of one question at a time, in the settings of LLM-Adapters' script: beams, and nothing else."""
    model = make_model()
    encoder = Encoder(tokenizer(), max_length=None)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer().eos_token_id, pad_token_id=0)
    found = texts(model, beams=4)
    for example in make_examples("siqa", 4):
        ids = torch.tensor([encoder.encode(FORMATS["label"].generation_prompt(example), "", eos=False).ids])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=4, do_sample=False, max_new_tokens=32
        )
        assert found[example.id] == tokenizer().decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def learned_positions(longest):
    """A model whose positions are rows of a table: behind its end there is an IndexError."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer()), n_positions=longest, n_embd=16, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("beams", [1, 2])
def test_context_has_room_for_the_text(beams):
    examples = make_examples("siqa", 6)
    longest = 60
    encoder = Encoder(tokenizer(), max_length=None)
    prompts = {}
    for example in examples:
        prompts[example.id] = encoder.encode(FORMATS["label"].generation_prompt(example), "", eos=False).ids
    model = learned_positions(longest)
    model.generation_config = GenerationConfig(eos_token_id=None)
    found = evaluate(model, tokenizer(), {"siqa": examples}, Request(**GENERATE, beams=beams)).predictions
    assert {p.id: p.truncated for p in found} == {id: len(ids) > longest - 32 for id, ids in prompts.items()}
    scorer = Generate(Encoder(tokenizer(), max_length=longest), FORMATS["label"])
    for example in examples:
        assert scorer.encode(example).texts[0].ids == prompts[example.id][-(longest - 32) :], "it loses its start"


@pytest.mark.parametrize(
    ("context", "asked", "named"),
    [
        (33, GENERATE, r"evaluation\.max_length = 33: .* at least 34"),
        (120, {**GENERATE, "format": "cloze"}, "format cloze"),
        (120, {**GENERATE, "max_length": 4_000}, r"evaluation\.max_length = 4000: .* 120 tokens"),
        (120, {"protocol": "choice", "max_length": 4_000}, r"evaluation\.max_length = 4000: .* 120 tokens"),
    ],
)
def test_what_does_not_fit_a_model_is_refused_in_a_line(context, asked, named):
    questions = {"siqa": make_examples("siqa", 2)}
    with pytest.raises(MosloraError, match=named):
        evaluate(learned_positions(context), tokenizer(), questions, Request(**asked))
    assert len(evaluate(learned_positions(34), tokenizer(), questions, Request(**GENERATE)).predictions) == 2
