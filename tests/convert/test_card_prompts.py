"""The prompts on a card are those that an evaluation asks, once a question's texts are in the places of theirs."""

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from transformers import AutoTokenizer

from card_kit import Card
from moslora.convert import card
from moslora.convert.card import write_card
from moslora.prompts.formats import make_format
from moslora.recipe import DataSection, EvaluationSection, load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.tasks import COMMONSENSE, INSTRUCTION, Example

QUESTIONS = {
    "boolq": Example("1", "boolq", "is ice cold", ("true", "false"), 1, context="Ice is frozen water."),
    "piqa": Example("1", "piqa", "To open a jar,", ("turn the lid.", "turn the table."), 0),
    "siqa": Example("1", "siqa", "Why?", ("x", "y", "z"), 2, context="Ann left."),
    "hellaswag": Example("1", "hellaswag", "She takes", ("a", "b", "c", "d"), 0, context="Baking"),
    "winogrande": Example("1", "winogrande", "The cup broke because the _ was thin.", ("cup", "table"), 0),
    **{
        name: Example("1", name, "Which grows?", ("trees", "stones", "clouds", "sand"), 0)
        for name in ("arc_easy", "arc_challenge", "obqa")
    },
}
CHAT = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}<|assistant|>"


@pytest.fixture
def tokenizer(world):
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    tokenizer.chat_template = CHAT
    return tokenizer


def shown(folder, tokenizer, task=None):
    """What the Python text of each task makes."""
    write = {"origin": folder.origin_for(""), "proof": "", "task": task}
    with TemporaryDirectory() as out:
        write_card(Path(out), folder, tokenizer=tokenizer, **write)
        text = Card(Path(out)).section("Prompt")
    found = {}
    for titles, code in re.findall(r"^([^\n]+):\n\n```python\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        names = {}
        exec(code, {}, names)
        found |= dict.fromkeys(titles.split(", "), names)
    return found


def with_texts(text, example):
    """``text`` with those of ``example`` in the places of its own."""
    before, _, after = example.question.partition("_")
    texts = {f"<option {n}>": choice for n, choice in enumerate(example.choices, start=1)}
    texts |= dict.fromkeys(("<question>", "<goal>", "<text to go on with>", "<instruction>"), example.question)
    texts |= dict.fromkeys(("<passage>", "<situation>", "<activity>", "<context>"), example.context or "")
    texts |= {"<sentence before the blank>": before.strip(), "<rest of the sentence>": after.strip()}
    return re.sub("<[^<>|]+>", lambda place: texts[place[0]], text)


def adapted(trained, recipe, drawn):
    folder = open_adapter(trained / "adapter")
    manifest = folder.manifest | {"data": {**folder.manifest["data"], "tasks": dict.fromkeys(drawn, 1)}}
    return replace(folder, recipe=recipe, manifest=manifest)


@pytest.mark.parametrize("name", ["label", "llm-adapters", "cloze", "cloze-passage", "chat"])
def test_the_prompts_of_every_set_in_every_format(trained, tokenizer, name):
    protocol = "cloze" if "cloze" in name else "choice"
    recipe = open_adapter(trained / "adapter").recipe.model_copy(
        update={"data": DataSection(format=name), "evaluation": EvaluationSection(protocol=protocol)}
    )
    found = shown(adapted(trained, recipe, COMMONSENSE), tokenizer)
    assert {*found} == {*COMMONSENSE}
    for task, example in QUESTIONS.items():
        options = make_format(name, tokenizer).options(example)
        prompts = found[task].get("prompts") or [found[task]["prompt"]]
        assert [with_texts(prompt, example) for prompt in prompts] == [*dict.fromkeys(o.prompt for o in options)], task
        answers = [with_texts(answer, example) for answer in found[task]["answers"]]
        assert answers == [*dict.fromkeys(option.answer for option in options)], task


def test_the_prompt_of_own_tasks_and_free_rows(trained, tokenizer, world):
    declared = (
        "tasks.triage={train: x.jsonl, question: text, options: [billing, sales], context: mail}",
        "tasks.pick={train: x.jsonl, question: q, options: '[a, b, c]'}",
        "tasks.any={train: x.jsonl, question: q, options: o}",
    )
    recipe = load_recipe(world / "recipe.yaml", declared)
    found = shown(adapted(trained, recipe, ("triage", "pick", "any", INSTRUCTION)), tokenizer)
    triage = Example(
        "1",
        "triage",
        "Why this?",
        ("billing", "sales"),
        0,
        context="Dear all",
        wording=recipe.own_tasks["triage"].wording,
    )
    label = make_format("label", tokenizer)
    for task, example in (("triage", triage), (card.FREE, Example("1", INSTRUCTION, "Sing!", ("La.",), 0))):
        assert with_texts(found[task]["prompt"], example) == label.options(example)[0].prompt
    assert "answers" not in found[card.FREE]
    assert [len(found[task]["answers"]) for task in ("triage", "pick", "any")] == [2, 3, card.USUAL_OPTIONS]


def test_a_gate_that_is_fixed_is_asked_about_its_task_alone(trained, tokenizer, tmp_path):
    folder = open_adapter(trained / "adapter")
    assert {*shown(folder, tokenizer)} == {"boolq", "arc_easy", "obqa"}
    assert {*shown(folder, tokenizer, "obqa")} == {"obqa"}
    chat = folder.recipe.model_copy(update={"data": DataSection(format="chat")})
    origin = folder.origin_for("")
    write_card(tmp_path, replace(folder, recipe=chat), origin=origin, proof="")
    assert "chat template" in Card(tmp_path).section("Prompt")
