"""Answers in words: the texts of a naive loop and of lm-eval's generate_until, and their numbers beside others."""

import copy
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import lm_eval_kit
from evaluation_kit import make_examples, make_model, tokenizer
from message_kit import says
from moslora.adapters import inject
from moslora.base.load import load_base, load_tokenizer
from moslora.base.resolve import BUILTIN, locate
from moslora.choices import FormatName
from moslora.data.encode import Encoder
from moslora.data.sources import load_examples
from moslora.errors import UsageError
from moslora.evaluation import Request, Results, evaluate
from moslora.evaluation.display import heading, remarks, table
from moslora.evaluation.intervals import wilson
from moslora.evaluation.open_ended import completes
from moslora.prompts.formats import FORMATS
from moslora.recipe import ModelSection, load_recipe
from moslora.recipe.yaml_text import render_inline
from moslora.runs.answers import TaskAnswers, order_key
from moslora.runs.outcomes import OUTCOMES, with_outcomes
from moslora.tasks import Columns, Example, OpenEnded, Task
from moslora.tasks.matching import NUMBER, Exact, Match, Number, Pattern
from recipe_kit import RECIPES
from reference import perturb

NEW_TOKENS = 12
STOP = ("e ", "\n\n")


def open_ended(match: Match | None = None, *, tokens: int = NEW_TOKENS, stop: Sequence[str] = STOP) -> Task:
    wording = OpenEnded("Say: ", match or Exact(), tokens, tuple(stop))
    return Task(name="mine", columns=Columns(options=None), wording=wording, splits={})


def rows(count: int, task: Task, answers: Sequence[Any] = ("never",)) -> list[dict[str, Any]]:
    """Questions of other tests, with these accepted answers in turn."""
    questions = [example.question for example in make_examples("arc_easy", count)]
    return [{"question": text, "answer": answers[n % len(answers)]} for n, text in enumerate(questions)]


def examples(task: Task, made: list[dict[str, Any]]) -> list[Example]:
    return [task.example(row, f"mine/test/{number}") for number, row in enumerate(made)]


def perturbed(*, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A model with an adapter that has learned something."""
    model = make_model(dtype)
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=["q_proj", "down_proj"])
    with torch.no_grad():
        perturb(p for p in model.parameters() if p.requires_grad)
    return model.eval()


@torch.inference_mode()
def naive(model: LlamaForCausalLM, prompt: str, task: Task) -> str:
    """The likeliest token, one after the other; cut before the first stop text."""
    words = task.wording
    assert isinstance(words, OpenEnded)
    ids = Encoder(tokenizer(), max_length=None).encode(prompt, "", eos=False).ids
    new: list[int] = []
    while len(new) < words.max_new_tokens:
        new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == tokenizer().eos_token_id:
            break
    return words.before_stop(tokenizer().decode(new, skip_special_tokens=True))


def asked(model: LlamaForCausalLM, questions: list[Example], out: Path | None = None, **others: Any) -> Results:
    return evaluate(model, tokenizer(), {"mine": questions}, Request(**others), out=out)


@pytest.mark.parametrize("format", ["label", "llm-adapters", "cloze"])
def test_a_text_is_the_likeliest_token_one_after_the_other(format: str) -> None:
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


def test_prompts_and_trained_texts_of_every_format() -> None:
    task = replace(open_ended(), columns=Columns(options=None, context="c", meta={"response": "r"}))
    task = replace(task, wording=replace(task.wording, shown="{context} {question}"))
    example = task.example({"question": "Why?", "answer": "So", "c": "Once.", "r": " So. "}, "mine/test/0")
    label = FORMATS["label"].train(example)
    assert (label.prompt, label.answer) == ("Say: Once. Why?\n\n### Response:\n", "So.")
    cloze = FORMATS["cloze"].train(example)
    assert (cloze.prompt, cloze.answer) == ("Question: Once. Why?\nAnswer:", " So.")
    assert FORMATS["cloze-passage"].generation_prompt(example) == cloze.prompt
    assert FORMATS["llm-adapters"].train(example).answer == "So."


def half_right(model: LlamaForCausalLM, task: Task, count: int = 40) -> list[dict[str, Any]]:
    """Rows of which every second accepts what the model writes, as the second of its answers."""
    made = rows(count, task)
    for row, example in list(zip(made, examples(task, made), strict=True))[::2]:
        text = naive(model, FORMATS["label"].generation_prompt(example), task)
        if text.strip():
            row["answer"] = ["never", text.upper()]
    return made


def test_numbers_are_those_of_exact_match_with_wilsons_interval() -> None:
    model = perturbed()
    task = open_ended()
    results = asked(model, examples(task, half_right(model, task)))
    score = results.tasks["mine"]
    right = sum(p.prediction == 1 for p in results.predictions)
    assert all(p.gold is None and p.prediction in (None, 1) for p in results.predictions)
    assert score.accuracy == right / 40 > 0.2 and score.interval == wilson(right / 40, 40)
    assert score.majority_class is score.below_majority is score.log_probability is score.drift is None
    assert score.parse_rate == sum(bool(p.text.strip()) for p in results.predictions) / 40
    assert heading(results).startswith("answers in words, format label")
    assert table(results)[0] == ["task", "n", "accuracy", "95 % interval", "parsed"]
    cloze = asked(model, examples(task, rows(4, task)), protocol="cloze", format="cloze")
    assert (cloze.settings.primary, cloze.summary()["metric"]) == ("accuracy_per_character", "accuracy")
    assert results.summary()["macro"] == score.accuracy and "majority_class" not in results.summary()


def test_an_error_of_format_is_counted_apart_and_the_same_answer_is_told() -> None:
    model = perturbed()
    nothing = open_ended(Pattern("#### (.+)", Exact()))
    with pytest.raises(ValueError, match="would count as wrong"):
        examples(nothing, rows(1, nothing))
    with_response = replace(nothing, columns=Columns(options=None, meta={"response": "'#### never'"}))
    results = asked(model, examples(with_response, rows(12, nothing)))
    assert results.tasks["mine"].parse_rate == results.tasks["mine"].accuracy == 0
    assert results.tasks["mine"].same_answer == 0
    assert "collapse: only 0.0 % of the texts have an answer" in remarks(results)

    anything = open_ended(Pattern("^()", Exact()))
    one = replace(anything, wording=replace(anything.wording, match=Always()))
    results = asked(model, examples(one, rows(12, one)))
    assert results.tasks["mine"].same_answer == 1 and results.tasks["mine"].accuracy == 0
    assert "collapse: one answer for nearly everything: mine 100.0 %" in remarks(results)


class Always(Exact):
    """Reads the same from every text but the right one."""

    def read(self, text: str) -> str:
        if text == "never":
            return text
        return "the same"


def test_beside_other_tasks_each_counts_by_its_own_metric(tmp_path: Path) -> None:
    """Under cloze the others count per character; the others' predictions are those without it."""
    model = perturbed()
    task = open_ended()
    boolq = make_examples("boolq", 30)
    mine = examples(task, half_right(model, task))
    request = Request(protocol="cloze", format="cloze")
    both = evaluate(model, tokenizer(), {"boolq": boolq, "mine": mine}, request, out=tmp_path / "e")
    alone = evaluate(model, tokenizer(), {"boolq": boolq}, request)
    assert both.tasks["boolq"] == alone.tasks["boolq"]
    expected = (both.tasks["boolq"].accuracy_per_character + both.tasks["mine"].accuracy) / 2
    assert both.macro.value("accuracy_per_character")[0] == pytest.approx(expected)
    assert both.macro.majority_class is both.macro.parse_rate is both.macro.log_probability is None
    assert alone.macro.majority_class is not None
    assert "protocol cloze (mine: answers in words), format cloze" in heading(both)
    shown = {row[0]: dict(zip(table(both)[0], row, strict=True)) for row in table(both)}
    assert shown["mine"]["per character"] == "–" and shown["mine"]["parsed"] != "–" == shown["boolq"]["parsed"]
    assert shown["macro average"]["per character"] != "–"


def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    model = perturbed(dtype=torch.bfloat16)
    task = open_ended()
    questions = examples(task, rows(70, task))
    asked(model, questions, tmp_path / "whole", limit=50)
    lines = (tmp_path / "whole" / "predictions.jsonl").read_text().splitlines(keepends=True)
    asked(model, questions, tmp_path / "part", limit=50)
    (tmp_path / "part" / "predictions.jsonl").write_text("".join(lines[:35]) + lines[35][:9])
    (tmp_path / "part" / "results.json").unlink()
    asked(model, questions, tmp_path / "part", limit=50)
    for name in ("predictions.jsonl", "results.json", "settings.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    other = examples(open_ended(stop=["a"]), rows(70, task))
    with pytest.raises(UsageError, match=r"other settings \(data.mine was"):
        asked(model, other, tmp_path / "part", limit=50)


def test_batches_do_not_move_a_text() -> None:
    model = perturbed()
    task = open_ended(stop=())
    questions = examples(task, rows(20, task))
    texts = []
    for tokens, protocol in ((4_000, "choice"), (1, "choice"), (300, "generate")):
        results = asked(model, questions, batch_tokens=tokens, protocol=protocol)
        texts.append({p.id: p.text for p in results.predictions})
    assert texts[0] == texts[1] == texts[2]


def test_a_long_question_loses_its_start_and_too_many_tokens_are_refused() -> None:
    task = open_ended()
    long = examples(task, [{"question": "a red fox " * 300, "answer": "b"}])
    (prediction,) = asked(make_model(), long).predictions
    assert prediction.truncated
    with pytest.raises(UsageError) as error:
        asked(make_model(), examples(open_ended(tokens=600), rows(1, task)))
    assert says(str(error.value), "answers of mine have up to 600 tokens", "leaves no room")


def test_a_turn_of_a_chat_ends_a_text_though_the_tokenizer_has_another_end() -> None:
    """The end is transformers' own, by the generation settings of the model. Of these a word of the text is none: it is
    there by a default of a config that nobody has set."""
    model = perturbed()
    task = open_ended(stop=())
    questions = examples(task, rows(12, task))

    def written(tokens: PreTrainedTokenizerBase, ends: list[int]) -> dict[str, list[int]]:
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


def test_a_stop_text_is_seen_across_tokens() -> None:
    """As soon as the last of its characters is there, and not before."""
    text = "a red fox\n\nsat 日本 e near"
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    for stops in (["\n\n"], ["本 e"], ["x", "fox\n\ns"], ["near"], ["never"], []):
        reached = []
        expected = []
        for count in range(1, len(ids) + 1):
            written = tokenizer().decode(ids[:count])
            reached.append(completes(tokenizer(), stops, ids[:count]))
            expected.append(any(stop in written for stop in stops))
        assert any(reached) == any(expected)
        if any(expected):
            assert reached.index(True) == expected.index(True)


def test_answers_are_kept_in_a_line_and_as_columns() -> None:
    model = perturbed()
    task = open_ended()
    predictions = asked(model, examples(task, half_right(model, task))).predictions
    for prediction in predictions:
        assert type(prediction).from_json(prediction.to_json()) == prediction
        assert '"gold":null' in prediction.to_json() and "text" in json.loads(prediction.to_json())
    answers = with_outcomes(TaskAnswers.of(predictions))
    assert answers.are_in_words and not answers.gold and not answers.are_texts
    assert list(answers.outcomes) == ["accuracy"] and OUTCOMES["accuracy"].binary
    assert answers.outcomes["accuracy"] == tuple(float(p.prediction is not None) for p in predictions)


NUMBERS = {"regexes_to_ignore": [",", r"\$", r"\.$"]}
LAST_NUMBER = {"function": "regex", "regex_pattern": NUMBER, "group_select": -1}
STRIPPED = {"function": "remove_whitespace"}
WORDS = {"ignore_case": True, "ignore_punctuation": True}
"""Metric and filter of lm-eval: those of gsm8k.yaml, with our expression, and of triviaqa's default.yaml."""


def by_lm_eval(
    model: PreTrainedModel,
    tokens: PreTrainedTokenizerBase,
    questions: Sequence[Example],
    *,
    format: FormatName,
    metric: dict[str, Any],
    filter: dict[str, Any],
) -> list[dict[str, Any]]:
    """lm-eval's record of every question: its own generate_until, filters and exact_match."""
    pytest.importorskip("lm_eval", reason="lm-eval is a development dependency")
    from datasets import Dataset, DatasetDict
    from lm_eval.models.huggingface import HFLM

    words = questions[0].wording
    assert isinstance(words, OpenEnded)
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
        "filter_list": [{"name": "read", "filter": [filter, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, **metric}],
    }
    return lm_eval_kit.samples(HFLM(pretrained=model, tokenizer=tokens, batch_size=8, max_length=512), config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "number"])
def test_texts_and_scores_are_those_of_lm_evals_generate_until(kind: str) -> None:
    model = perturbed()
    if kind == "text":
        task = open_ended()
        questions = examples(task, half_right(model, task))
        samples = by_lm_eval(model, tokenizer(), questions, format="label", metric=WORDS, filter=STRIPPED)
    else:
        task = open_ended(Number())
        questions = examples(task, rows(40, task, [["7"], ["12", "3"]]))
        samples = by_lm_eval(model, tokenizer(), questions, format="label", metric=NUMBERS, filter=LAST_NUMBER)
    ours = {p.id: p for p in asked(model, questions).predictions}
    assert len(samples) == len(ours) == 40
    for example, sample in zip(questions, samples, strict=True):
        prediction = ours[example.id]
        assert prediction.text == sample["resps"][0][0]
        assert float(prediction.prediction is not None) == sample["exact_match"], prediction


@torch.inference_mode()
def gap_where_they_part(
    model: PreTrainedModel, tokens: PreTrainedTokenizerBase, texts: tuple[str, str], prompt: str
) -> float:
    """The difference between the two best logits behind what two texts after a prompt begin with."""
    pair = [tokens(prompt + text, add_special_tokens=False)["input_ids"] for text in texts]
    together = [one for one, other in zip(*pair, strict=False) if one == other]
    best = model(input_ids=torch.tensor([together])).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


@pytest.mark.slow
@pytest.mark.skipif("MOSLORA_SLOW_TESTS" not in os.environ, reason="minutes; set MOSLORA_SLOW_TESTS=1")
@pytest.mark.parametrize("name", ["arithmetic", "triviaqa"])
def test_a_real_model_writes_what_lm_eval_writes(name: str) -> None:
    """200 questions of the wheel's copies, in float32. Where a text differs, rounding decides between two tokens."""
    declared = yaml.safe_load((RECIPES / "tasks" / f"{name}.yaml").read_text("utf-8"))["tasks"][name]
    metric = NUMBERS
    filter = LAST_NUMBER
    if name == "triviaqa":
        declared = {key: value for key, value in declared.items() if key not in ("hub", "test")}
        declared |= {"wheel": "trivia_qa/rc.wikipedia.nocontext", "train": "validation"}
        declared |= {"ignore": ["case", "punctuation"]}
        metric = WORDS
        filter = STRIPPED
    recipe = load_recipe("smollm2-135m", [f"tasks.mine={render_inline(declared)}"])
    every = load_examples(recipe.own_tasks["mine"], "test", source="wheel")
    questions = sorted(every, key=lambda example: order_key(example.id))[:200]
    section = ModelSection(name=BUILTIN, dtype="float32")
    model = load_base(section)
    tokens = load_tokenizer(section)
    request = Request(protocol="cloze", format="cloze", max_length=512)
    ours = {p.id: p for p in evaluate(model, tokens, {"mine": questions}, request).predictions}
    plain = AutoModelForCausalLM.from_pretrained(locate(BUILTIN), dtype="float32").eval()
    samples = by_lm_eval(plain, tokens, questions, format="cloze", metric=metric, filter=filter)
    differ = 0
    for example, sample in zip(questions, samples, strict=True):
        prediction = ours[example.id]
        text = sample["resps"][0][0]
        if prediction.text != text:
            differ += 1
            prompt = FORMATS["cloze"].generation_prompt(example)
            assert gap_where_they_part(plain, tokens, (str(prediction.text), text), prompt) < 1e-4, example.id
            continue
        assert float(prediction.prediction is not None) == sample["exact_match"], (prediction, example)
    right = sum(p.prediction is not None for p in ours.values())
    print(f"{name}: {right} of 200 right, as lm-eval; {differ} texts differ")
