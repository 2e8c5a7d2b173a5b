"""A typed question: scored as the same question of a set is, and asked in no way that its task does not have."""

import io
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from changes_kit import write_jsonl
from cli_kit import run
from evaluation_kit import make_examples, tokenizer
from message_kit import in_order, says
from moslora.errors import UsageError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.ask import Chat, InWords, ask
from moslora.evaluation.loading import load
from moslora.evaluation.model import Writing
from moslora.evaluation.target import open_target
from moslora.evaluation.typed_question import as_example
from moslora.recipe import load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.tasks import Example
from moslora.training import train_recipe

SHAPES = {
    **dict.fromkeys(("arc_easy", "arc_challenge", "piqa", "obqa", "winogrande"), lambda e: e.question),
    "boolq": lambda e: f"{e.question}?",
    "hellaswag": lambda e: f"{e.context}: {e.question}",
    "siqa": lambda e: f"{e.context} {e.question}",
}


@pytest.mark.parametrize(("protocol", "format"), [("choice", "label"), ("choice", "llm-adapters"), ("cloze", "cloze")])
@pytest.mark.parametrize("task", SHAPES)
def test_the_probabilities_are_those_of_evaluate(trained, task, protocol, format):
    example = make_examples(task, 3)[2]
    target = open_target(str(trained))
    options = () if task == "boolq" else example.choices
    answers = ask(target, question=SHAPES[task](example), options=options, task=task, protocol=protocol, format=format)
    model = load_adapted(open_adapter(trained / "adapter"))
    results = evaluate(model, tokenizer(), {task: [example]}, Request(protocol=protocol, format=format))
    (expected,) = results.predictions
    assert answers.prediction.scores == expected.scores and answers.prediction.characters == expected.characters
    probabilities = np.exp(expected.scores)
    if protocol == "choice":  # the scores are log-probabilities of the labels already
        assert probabilities.sum() == pytest.approx(1)
    by_option = dict(zip(example.choices, probabilities / probabilities.sum(), strict=True))
    assert {answer.option: answer.probability for answer in answers.options} == pytest.approx(by_option, abs=1e-12)
    deciding = np.array(expected.scores) / (expected.characters or 1)
    assert [answer.score for answer in answers.options] == pytest.approx(sorted(deciding, reverse=True))
    assert answers.options[0].option == example.choices[deciding.argmax()]


def test_a_task_gate_is_told_the_task(recipe, tmp_path):
    overrides = ("training.epochs=1", "training.learning_rate=0.1", "adapter.mixer={kind: task-gate, experts: 2}")
    train_recipe(recipe(*overrides), out=tmp_path / "run")
    target = open_target(str(tmp_path / "run"))
    scores = []
    for task in ("arc_easy", "obqa"):  # one template for both, so that the gate alone tells them apart
        example = replace(make_examples("obqa", 1)[0], task=task)
        found = ask(target, question=example.question, options=example.choices, task=task).prediction.scores
        model = load_adapted(open_adapter(tmp_path / "run" / "adapter"))
        request = Request(protocol="choice", format="label")
        (expected,) = evaluate(model, tokenizer(), {task: [example]}, request).predictions
        assert found == expected.scores
        scores.append(found)
    assert scores[0] != scores[1]


def test_a_question_without_a_task_has_its_own_gate(recipe, tmp_path):
    """Only rows without a task train it. Its text has room whatever the limit of the questions that are scored."""
    overrides = ("training.max_steps=2", "evaluation.max_length=64")
    gate = "adapter.mixer={kind: task-gate, experts: 2}"
    rows = [{"prompt": f"rain and {number}", "completion": "birds"} for number in range(24)]
    write_jsonl(tmp_path / "bare.jsonl", rows)
    own = (f"data.source={tmp_path / 'bare.jsonl'}", "data.tasks=commonsense", "evaluation.tasks=null")
    targets = []
    for number, changes in enumerate(((gate,), (), (gate, *own))):
        train_recipe(recipe(*overrides, *changes), out=tmp_path / str(number))
        targets.append(open_target(str(tmp_path / str(number))))
    of_tasks, plain, of_rows = targets
    with pytest.raises(UsageError, match=in_order("never trained on", "--task must be one of boolq, arc_easy")):
        ask(of_tasks, question="rain")
    written = ask(plain, question="rain").prediction
    assert written.task == "question" and not written.truncated
    assert ask(of_rows, question="rain").prediction.text


def test_ask_replaces_generation_and_passages(trained):
    target = open_target(str(trained))
    generates = replace(target, request=target.request.model_copy(update={"protocol": "generate"}))
    assert ask(generates, question="a", options=("b", "c")).protocol == "choice"
    cloze = {"format": "cloze-passage", "protocol": "cloze"}
    passages = replace(target, request=target.request.model_copy(update=cloze))
    assert ask(passages, question="a", options=("yes", "no")).format == "cloze"


def test_fixed_options_are_the_default():
    columns = "{train: rows.jsonl, question: text, options: [billing, sales], answer: label}"
    own = load_recipe("smollm2-135m", [f"tasks.mine={columns}"]).own_tasks
    for given, options in (((), ("billing", "sales")), (("other", "none"), ("other", "none"))):
        example, names = as_example("My invoice is wrong", given, own=own)
        assert (example.task, example.choices, names) == ("mine", options, options)


@pytest.fixture(scope="module")
def talking(world, tmp_path_factory):
    """A model with a chat template that takes a system message, and room for 96 tokens."""
    folder = shutil.copytree(world / "model", tmp_path_factory.mktemp("talking") / "model")
    words = tokenizer()
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 96}))
    return folder


TEMPLATE = (
    "{% for turn in messages %}{% if turn.content == 'cold' %}{{ raise_exception('no cold here') }}{% endif %}"
    "{{ turn.role }}: {{ turn.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A chat template that refuses one text."""


def written(folder, turns, *, new):
    """What transformers' greedy search writes behind ``turns``, by role and content."""
    words = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = words(words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), return_tensors="pt")
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=new)
    return words.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_conversation_is_kept(capsys, talking, monkeypatch):
    monkeypatch.setattr("sys.stdin", terminal("a red fox\ntwo birds\n\nignored\n"))
    options = ("--system", "rain", "--max-tokens", 5, "--dtype", "float32")
    code, out, _ = run(capsys, "ask", talking, *options)
    turns = [("system", "rain"), ("user", "a red fox")]
    first = written(talking, turns, new=5)
    second = written(talking, [*turns, ("assistant", first), ("user", "two birds")], new=5)
    assert code == 0 and out == f"> {first}\n> {second}\n> "
    assert second != written(talking, [turns[0], ("user", "two birds")], new=5)
    assert run(capsys, "ask", talking, *options, "--question", "a red fox")[1].endswith(f"\n{first}\n")


def test_long_conversation_loses_its_first_questions(talking):
    chat = Chat.of(open_target(str(talking)), InWords(system="rain", max_tokens=5))
    for number in range(8):
        chat.answer(f"two birds sang {number}")
    kept = [turn.content for turn in chat.turns if turn.role != "assistant"]
    assert 2 < len(kept) < 9 and kept == ["rain", *(f"two birds sang {n}" for n in range(9 - len(kept), 8))]


def test_temperature_draws_from_the_softmax(talking):
    """Near 0 the likeliest token; otherwise the likeliest text as often as its probability says."""
    target = open_target(str(talking), dtype="float32")
    cold = Chat.of(target, InWords(temperature=1e-5, max_tokens=5)).answer("a red fox")
    assert cold == written(talking, [("user", "a red fox")], new=5)
    model, words = load(talking, dtype="float32")
    ids = words("user: a red fox\nassistant: ", return_tensors="pt")
    with torch.inference_mode():
        probabilities = (model(**ids).logits[0, -1] / 2).softmax(-1)
    expected = Counter()
    for token, probability in enumerate(probabilities.tolist()):
        expected[words.decode([token], skip_special_tokens=True)] += probability
    torch.manual_seed(0)
    chat = Chat.of(target, InWords(temperature=2.0))
    how = Writing(max_new_tokens=1, ended=lambda *_: False, ends=[])
    (texts,) = chat.model.write([ids.input_ids[0].tolist()] * 4000, how, task=None)()
    drawn = Counter(texts.values())
    for text, probability in expected.most_common(5):
        assert binomtest(drawn[text], 4000, probability).pvalue > 1e-3


def terminal(text):
    stream = io.StringIO(text)
    stream.isatty = lambda: True
    return stream


def test_yes_and_no_are_boolqs_in_its_own_order():
    for options, names in ((("No", "Yes"), ("Yes", "No")), (("true", "false"), ("true", "false"))):
        example, found = as_example("Is rain cold? ", options)
        assert example == Example("question", "boolq", "Is rain cold", ("true", "false"), 0) and found == names
    example, _ = as_example("Is rain cold?", ("Yes", "No"), task="arc_easy")
    assert example.task == "arc_easy" and example.choices == ("Yes", "No")


ASKED = ("--question", "why", "--option", "a", "--option", "b")

WRONG = {
    "no question": (["--question", " ", "--option", "a", "--option", "b"], "", "the question is empty"),
    "end before the options": (["--task", "arc_easy"], "why\n", "0 option given"),
    "one option": (["--question", "why", "--option", "a"], "", "1 option given"),
    "no such task": ([*ASKED, "--task", "boolk"], "", "did you mean boolq?"),
    "two tasks": ([*ASKED, "--task", "piqa,obqa"], "", "--task: "),
    "not boolq's": ([*ASKED, "--task", "boolq"], "", "task boolq"),
    "no gap": ([*ASKED, "--task", "winogrande"], "", "one _"),
    "system and options": ([*ASKED, "--system", "rain"], "", "--system"),
    "system without turns": (["--question", "why", "--system", "rain"], "", "--format chat"),
    "protocol and format": ([*ASKED, "--protocol", "choice", "--format", "cloze"], "", "--protocol cloze"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line(capsys, trained, monkeypatch, case):
    arguments, typed, message = WRONG[case]
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code, out, err = run(capsys, "ask", trained, *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_flags_and_typed_lines_give_the_same(capsys, trained, monkeypatch):
    flags = ["--question", "what sat near the bridge", "--option", "a red fox", "--option", "[two] birds"]
    code, out, _ = run(capsys, "ask", trained, *flags)
    head, *lines = out.splitlines()
    assert code == 0 and says(head, "protocol choice", "format label", "arc_easy")
    assert {line.split("  ")[-1] for line in lines} == {"a red fox", "[two] birds"}
    assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.11)
    for typed, given in (
        ("what sat near the bridge\na red fox\n[two] birds\n\nignored\n", []),
        ("what sat near the bridge\n", flags[2:]),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert run(capsys, "ask", trained, *given)[:2] == (0, out)
