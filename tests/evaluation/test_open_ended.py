"""Answers in words: the texts of a naive loop and of lm-eval's generate_until, and their numbers beside others."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import (
    GenerationConfig,
)

import lm_eval_kit
from evaluation_kit import make_examples, make_model, tokenizer
from message_kit import says
from moslora.adapters import inject
from moslora.data.encode import Encoder
from moslora.errors import UsageError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.display import remarks, table
from moslora.prompts.formats import FORMATS
from moslora.runs.answers import TaskAnswers
from moslora.runs.intervals import wilson
from moslora.runs.outcomes import with_outcomes
from moslora.tasks import Columns, OpenEnded, Task
from moslora.tasks.matching import NUMBER, Exact, Number, Pattern
from reference import perturb

NEW_TOKENS = 12
STOP = ("e ", "\n\n")


def open_ended(match=None, *, tokens=NEW_TOKENS, stop=STOP):
    wording = OpenEnded("Say: ", match or Exact(), tokens, tuple(stop))
    return Task(name="mine", columns=Columns(options=None), wording=wording, splits={})


def rows(count, task, answers=("never",)):
    """Questions of other tests, with these accepted answers in turn."""
    questions = [example.question for example in make_examples("arc_easy", count)]
    return [{"question": text, "answer": answers[n % len(answers)]} for n, text in enumerate(questions)]


def examples(task, made):
    return [task.example(row, f"mine/test/{number}") for number, row in enumerate(made)]


def perturbed(*, dtype=torch.float32):
    """A model with an adapter that has learned something."""
    model = make_model(dtype)
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=["q_proj", "down_proj"])
    with torch.no_grad():
        perturb(p for p in model.parameters() if p.requires_grad)
    return model.eval()


@torch.inference_mode()
def naive(model, prompt, task):
    """The likeliest token, one after the other; cut before the first stop text."""
    words = task.wording
    assert isinstance(words, OpenEnded)
    ids = Encoder(tokenizer(), max_length=None).encode(prompt, "", eos=False).ids
    new = []
    while len(new) < words.max_new_tokens:
        new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == tokenizer().eos_token_id:
            break
    return words.before_stop(tokenizer().decode(new, skip_special_tokens=True))


def asked(model, questions, out=None, **others):
    return evaluate(model, tokenizer(), {"mine": questions}, Request(**others), out=out)


@pytest.mark.parametrize("format", ["label", "llm-adapters", "cloze"])
def test_text_is_greedy(format):
    model = perturbed()
    task = open_ended()
    questions = examples(task, rows(7, task))
    protocol = "cloze" if format == "cloze" else "choice"
    written = {p.id: p.text for p in asked(model, questions, protocol=protocol, format=format).predictions}
    untrained = make_model()
    expected = {}
    by_the_base = {}
    for example in questions:
        prompt = FORMATS[format].generation_prompt(example)
        expected[example.id] = naive(model, prompt, task)
        by_the_base[example.id] = naive(untrained, prompt, task)
    assert written == expected
    assert len(set(expected.values())) > 1
    assert written != by_the_base


def test_prompts_and_trained_texts_of_every_format():
    task = replace(open_ended(), columns=Columns(options=None, context="c", meta={"response": "r"}))
    task = replace(task, wording=replace(task.wording, shown="{context} {question}"))
    example = task.example({"question": "Why?", "answer": "So", "c": "Once.", "r": " So. "}, "mine/test/0")
    for format, prompt, answer in (
        ("label", "Say: Once. Why?\n\n### Response:\n", "So."),
        ("cloze", "Question: Once. Why?\nAnswer:", " So."),
        ("cloze-passage", "Question: Once. Why?\nAnswer:", " So."),
    ):
        trained = FORMATS[format].train(example)
        assert (trained.prompt, trained.answer) == (prompt, answer)
        assert FORMATS[format].generation_prompt(example) == prompt
    assert FORMATS["llm-adapters"].train(example).answer == "So."


def half_right(model, task, count=40):
    """Rows of which every second accepts what the model writes, as the second of its answers."""
    made = rows(count, task)
    for row, example in list(zip(made, examples(task, made), strict=True))[::2]:
        text = naive(model, FORMATS["label"].generation_prompt(example), task)
        if text.strip():
            row["answer"] = ["never", text.upper()]
    return made


def test_numbers_are_those_of_exact_match():
    model = perturbed()
    task = open_ended()
    results = asked(model, examples(task, half_right(model, task)))
    score = results.tasks["mine"]
    right = sum(p.prediction == 1 for p in results.predictions)
    assert all(p.gold is None and p.prediction in (None, 1) for p in results.predictions)
    assert score.accuracy == right / 40 > 0.2 and score.interval == wilson(right / 40, 40)
    assert score.majority_class is score.below_majority is score.log_probability is score.drift is None
    assert score.parse_rate == sum(bool(p.text.strip()) for p in results.predictions) / 40
    assert results.macro.accuracy == score.accuracy and results.macro.majority_class is None
    answers = with_outcomes(TaskAnswers.of(results.predictions))
    assert answers.are_in_words and not answers.gold
    assert answers.outcomes == {"accuracy": tuple(float(p.prediction is not None) for p in results.predictions)}


def test_unparsed_and_equal_answers_are_signs_of_collapse():
    model = perturbed()
    nothing = open_ended(Pattern("#### (.+)", Exact()))
    with pytest.raises(ValueError, match="would count as wrong"):
        examples(nothing, rows(1, nothing))
    with_response = replace(nothing, columns=Columns(options=None, meta={"response": "'#### never'"}))
    results = asked(model, examples(with_response, rows(12, nothing)))
    score = results.tasks["mine"]
    assert score.parse_rate == score.accuracy == score.same_answer == 0
    assert says("\n".join(remarks(results)), "collapse: only 0.0 %")
    one = open_ended(Always())
    results = asked(model, examples(one, rows(12, one)))
    assert results.tasks["mine"].same_answer == 1 and results.tasks["mine"].accuracy == 0
    assert says("\n".join(remarks(results)), "collapse: one answer", "mine 100.0 %")


class Always(Exact):
    """Reads the same from every text but the right one."""

    def read(self, text):
        if text == "never":
            return text
        return "the same"


def test_beside_other_tasks_each_counts_by_its_own_metric():
    """Under cloze the others count per character; the others' predictions are those without it."""
    model = perturbed()
    task = open_ended()
    boolq = make_examples("boolq", 30)
    request = Request(protocol="cloze", format="cloze")
    mine = examples(task, half_right(model, task))
    both = evaluate(model, tokenizer(), {"boolq": boolq, "mine": mine}, request)
    alone = evaluate(model, tokenizer(), {"boolq": boolq}, request)
    assert both.tasks["boolq"] == alone.tasks["boolq"]
    expected = (both.tasks["boolq"].accuracy_per_character + both.tasks["mine"].accuracy) / 2
    assert both.macro.main.value == pytest.approx(expected)
    assert both.macro.majority_class is both.macro.parse_rate is both.macro.log_probability is None
    assert alone.macro.majority_class is not None
    shown = {row[0]: dict(zip(table(both)[0], row, strict=True)) for row in table(both)}
    assert shown["mine"]["per character"] == "–" and shown["mine"]["parsed"] != "–" == shown["boolq"]["parsed"]


def test_long_question_loses_its_start():
    task = open_ended()
    long = examples(task, [{"question": "a red fox " * 300, "answer": "b"}])
    (prediction,) = asked(make_model(), long).predictions
    assert prediction.truncated
    with pytest.raises(UsageError) as error:
        asked(make_model(), examples(open_ended(tokens=600), rows(1, task)))
    assert says(str(error.value), "answers of mine have up to 600 tokens", "leaves no room")


def test_end_of_turn_ends_a_text():
    """The end is transformers' own, by the generation settings of the model. Of these a word of the text is none: it is
    there by a default of a config that nobody has set."""
    model = perturbed()
    task = open_ended(stop=())
    questions = examples(task, rows(12, task))

    def written(tokens, ends):
        """What transformers writes."""
        options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": ends, "pad_token_id": 0}
        found = {}
        for example in questions:
            prompt = FORMATS["label"].generation_prompt(example)
            ids = torch.tensor([Encoder(tokens, max_length=None).encode(prompt, "", eos=False).ids])
            found[example.id] = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        return found

    plain = tokenizer()
    tokens = copy.deepcopy(plain)
    counts = Counter[int]()
    for new in written(plain, [plain.eos_token_id]).values():
        counts.update(set(new[:-1].tolist()))
    (end, _), (word, _) = counts.most_common(2)
    tokens.add_special_tokens({"additional_special_tokens": [tokens.convert_ids_to_tokens(end)]})
    model.generation_config = GenerationConfig(eos_token_id=[tokens.eos_token_id, end, word])
    found = {p.id: p.text for p in evaluate(model, tokens, {"mine": questions}, Request()).predictions}
    expected = written(tokens, [tokens.eos_token_id, end])
    assert found == {id: tokens.decode(new, skip_special_tokens=True) for id, new in expected.items()}
    assert sum(len(new) < NEW_TOKENS for new in expected.values()) > 3
    assert sum(word in new[:-1] for new in expected.values()) > 3


NUMBERS = {"regexes_to_ignore": [",", r"\$", r"\.$"]}
LAST_NUMBER = {"function": "regex", "regex_pattern": NUMBER, "group_select": -1}
STRIPPED = {"function": "remove_whitespace"}
WORDS = {"ignore_case": True, "ignore_punctuation": True}
"""Metric and filter of lm-eval: those of gsm8k.yaml, with our expression, and of triviaqa's default.yaml."""


def by_lm_eval(
    model,
    tokens,
    questions,
    *,
    format,
    numbers,
):
    """lm-eval's record of every question: its own generate_until, filters and exact_match."""
    pytest.importorskip("lm_eval", reason="lm-eval is a development dependency")
    from datasets import Dataset, DatasetDict
    from lm_eval.models.huggingface import HFLM

    words = questions[0].wording
    assert isinstance(words, OpenEnded)
    metric = NUMBERS if numbers else WORDS
    columns = {
        "prompt": [FORMATS[format].generation_prompt(example) for example in questions],
        "answers": [list(example.choices) for example in questions],
    }
    config = {
        "task": "mine",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_dict(columns)}),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answers}}",
        "generation_kwargs": {"until": list(words.stop), "do_sample": False, "max_gen_toks": words.max_new_tokens},
        "filter_list": [{"name": "read", "filter": [LAST_NUMBER if numbers else STRIPPED, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, **metric}],
    }
    return lm_eval_kit.samples(HFLM(pretrained=model, tokenizer=tokens, batch_size=8, max_length=512), config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "number"])
def test_texts_and_scores_are_those_of_lm_eval(kind):
    model = perturbed()
    if kind == "text":
        task = open_ended()
        questions = examples(task, half_right(model, task))
    else:
        task = open_ended(Number())
        questions = examples(task, rows(40, task, [["7"], ["12", "3"]]))
    samples = by_lm_eval(model, tokenizer(), questions, format="label", numbers=kind == "number")
    assert_equal(asked(model, questions), questions, samples)


def assert_equal(results, questions, samples):
    """Compares texts and scores with lm-eval's, question by question."""
    ours = {p.id: p for p in results.predictions}
    assert len(samples) == len(ours) == len(questions)
    for example, sample in zip(questions, samples, strict=True):
        prediction = ours[example.id]
        assert prediction.text == sample["resps"][0][0]
        assert float(prediction.prediction is not None) == sample["exact_match"], prediction
