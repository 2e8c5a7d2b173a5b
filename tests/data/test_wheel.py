"""The real rows: equal to LLM-Adapters' files by git blob id, and to the hub's rows one by one."""

import hashlib
import json
import re
from dataclasses import replace

import pytest

from data_kit import hub_examples, hub_rows, rows
from moslora.data import wheel
from moslora.data.sources import data_hash, differences, load_examples
from moslora.errors import UsageError
from moslora.prompts.instructions import instruction, llm_adapters_row, parse_instruction
from moslora.tasks import COMMONSENSE, PASSAGES, TASKS

BLOB_IDS = {
    ("boolq", "train"): "87a7beee26b49f81c450641ef2ff84f55611321f",
    ("boolq", "test"): "6d7edb0a8e8a6566b546ccf0d98d24e48db3fdf3",
    ("piqa", "train"): "44326ba946f8bd645bfa7a189e619d29b5bc17e5",
    ("piqa", "test"): "f7a1c260692ef31796d4763cb6334f316a754fed",
    ("siqa", "train"): "bd524129d80efdfabc8476bbedc4f41b400cfda0",
    ("siqa", "test"): "eadf221799ca394367b144c0f86ee0436db409d2",
    ("hellaswag", "train"): "ca68dc85fc2a2f73c9b1b8b0823cc41a8f669718",
    ("hellaswag", "test"): "183c4920415f83ba4b793c4873a33e7e10bd1be5",
    ("winogrande", "train"): "0b56375ac6b4464fa97abfb72812f15c772ba305",
    ("winogrande", "test"): "21257263593dd4d00546e1918c88ca0f357b08ad",
    ("arc_easy", "train"): "488a8e5e5bbbd7a630ebbfe07a1fd91b7d9d8c9b",
    ("arc_easy", "test"): "6c0d30aaedaeca148df6bcd7aaacf7c31e6ad70f",
    ("arc_challenge", "train"): "d7e080b04bff9fd16dd85455fb04481807a088d8",
    ("arc_challenge", "test"): "9540685439144200b5a7e48dab9ca4655be2af09",
    ("obqa", "train"): "75bcd5eb9f5e77a3796c05e6bb38f169d19563fc",
    ("obqa", "test"): "a6e69676104bcb77237388c3b5a3f0dcbb81d1e2",
}
"""Git blob ids of LLM-Adapters' `dataset/<set>/{train,test}.json`: their text, without carrying it."""
DIFFERENT = {("hellaswag", "train"), ("winogrande", "train")}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", COMMONSENSE)
def test_git_blob_id(task, split):
    """14 of LLM-Adapters' 16 files, to the byte; the two others are known to differ, and are reported."""
    raw = (task, split) == ("hellaswag", "test")
    examples = hub_examples(task) if raw else rows(task, split)
    content = json.dumps([llm_adapters_row(example) for example in examples], indent=4).encode()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()  # git hash-object
    same = blob == BLOB_IDS[task, split]
    assert same == ((task, split) not in DIFFERENT)
    if not same:
        assert any(line.startswith(f"{task}:") for line in differences("wheel", [task]))


def test_passages_have_no_titles_and_are_in_no_training_row():
    """Against the hub's copy of the test rows, whose passages have no titles; words by a regex here."""

    def words(text):
        return " ".join(re.findall(r"\w+", text.lower()))

    found = load_examples(PASSAGES, "test", source="wheel")
    texts = [example.choices[0] for example in found]
    known = {words(row.context.split(" -- ", 1)[1]) for row in rows("boolq", "train") if row.context}
    asked = {row["passage"] for row in hub_rows("boolq")}
    assert set(texts) <= asked and {words(text) for text in texts} == {words(text) for text in asked} - known
    assert len(found) == len(set(map(words, texts))) == len({example.id for example in found}) == 2_212
    assert sum(len(text.encode()) for text in texts) == 1_227_171 and data_hash(found).startswith("a9a2f0ea")
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert [example.id for example in found] == [f"passages/{digest[:16]}" for digest in hashes]


@pytest.mark.parametrize("task", COMMONSENSE)
def test_rows_are_complete_and_their_ids_unique(task):
    for split, count in TASKS[task].rows.items():
        examples = rows(task, split)
        assert [example.id for example in examples] == [f"{task}/{split}/{row}" for row in range(count)]
        assert all(0 <= example.gold < len(example.choices) <= 5 for example in examples)


def clean_hellaswag(text):
    """The preprocessing that the wheel's makers applied; lm-eval's lacks the first replacement."""
    text = text.strip().replace(". [title]", ". ").replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


@pytest.mark.parametrize("task", COMMONSENSE)
def test_hub_rows_and_wheel_rows_are_the_same_examples(task):
    """On every set's whole validation split; HellaSwag's through the known cleaning."""
    split = "test" if TASKS[task].splits["test"] == "validation" else "dev"
    from_hub, from_wheel = hub_examples(task), rows(task, split)
    assert len(from_hub) == len(from_wheel) == TASKS[task].rows[split]
    for hub, ours in zip(from_hub, from_wheel, strict=True):
        assert (hub.id, hub.task, hub.gold) == (ours.id, ours.task, ours.gold)
        if task == "hellaswag":
            raw = f"{hub.context}: {hub.meta['ctx_a']} {hub.meta['ctx_b'].capitalize()}"
            assert f"{ours.context}: {ours.question}" == clean_hellaswag(raw)
            assert ours.choices == tuple(clean_hellaswag(choice) for choice in hub.choices)
            continue
        assert (hub.question, hub.choices) == (ours.question, ours.choices)
        if task == "boolq":  # the wheel's passage is SuperGLUE's, with the article's title before it
            assert hub.context is not None and ours.context is not None
            assert ours.context.endswith(f" -- {hub.context}")
        else:
            assert hub.context == ours.context


@pytest.mark.parametrize("task", COMMONSENSE)
def test_every_instruction_is_read_back(task):
    for example in rows(task, "train"):
        parsed = parse_instruction(instruction(example), task)
        assert parsed is not None
        context, question, choices = parsed
        assert choices == example.choices
        if task == "siqa":
            assert (context, question) == (None, f"{example.context} {example.question}")
        else:
            assert question == example.question


def test_data_hash_sees_order_and_every_field():
    examples = rows("arc_easy", "dev")
    assert data_hash(examples) != data_hash(examples[::-1])
    for name in ("id", "task", "question", "choices", "gold", "context", "meta", "wording"):
        assert data_hash(examples) != data_hash([replace(examples[0], **{name: ("x",)}), *examples[1:]])


def test_what_the_wheel_does_not_have_is_said():
    with pytest.raises(UsageError, match=r"split 'dev'.*train, test"):
        load_examples(TASKS["boolq"], "dev", source="wheel")


def test_a_damaged_cached_copy_is_made_again(monkeypatch):
    good = rows("arc_challenge", "dev")
    monkeypatch.setattr(wheel, "_SCHEMA", "test-damage")
    assert wheel.load(TASKS["arc_challenge"], "dev") == good
    (path,) = (wheel.home() / "data").glob("*test-damage/arc_challenge-dev.json.gz")
    try:
        for damaged in (path.read_bytes()[:-100], path.read_bytes()[:3000] + b"\0" * 50, b"", b"no gzip"):
            path.write_bytes(damaged)
            assert wheel.load(TASKS["arc_challenge"], "dev") == good
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
