"""Local files in LLM-Adapters' format: read back exactly, and their faults said all at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from changes_kit import write_jsonl
from data_kit import sample
from message_kit import in_order, says
from moslora.data.local import load, read_file
from moslora.data.sources import load_examples, load_training, row_counts
from moslora.errors import UsageError
from moslora.prompts.instructions import llm_adapters_row
from moslora.tasks import COMMONSENSE, INSTRUCTION, TASKS

SAMPLE = Path(__file__).parents[2] / "data" / "sample.jsonl"
YES = {
    "instruction": "Please answer the following question with true or false, question: is it?\n\n"
    "Answer format: true/false",
    "input": "",
    "output": "the correct answer is true",
    "answer": "true",
}
TWO = {
    "instruction": "Please choose the correct answer to the question: q\n\nAnswer1: a Answer2: b\n\n"
    "Answer format: answer1/answer2",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        path.write_text(json.dumps(rows, indent=4), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("task", COMMONSENSE)
def test_rows_of_every_set_survive_the_round_trip(task, suffix, tmp_path):
    rows = [llm_adapters_row(example) for example in sample(task, "train", 200)]
    write(tmp_path / TASKS[task].folder / f"train{suffix}", rows)
    examples = load_examples(TASKS[task], "train", source=str(tmp_path))
    assert [llm_adapters_row(example) for example in examples] == rows
    assert [example.id for example in examples] == [f"{task}/train/{row}" for row in range(200)]


def test_a_mixed_file_serves_each_set_its_rows():
    examples = read_file(SAMPLE, "train")
    for line, example in zip(SAMPLE.read_text(encoding="utf-8").splitlines(), examples, strict=True):
        assert llm_adapters_row(example) == {key: text for key, text in json.loads(line).items() if key != "task"}
    assert {example.task for example in examples} == {*COMMONSENSE, INSTRUCTION}
    assert load_training(list(TASKS.values()), source=str(SAMPLE)) == examples
    assert [example.task for example in load(SAMPLE, TASKS["piqa"], "test")] == ["piqa", "piqa"]
    assert row_counts([TASKS["boolq"]], source=str(SAMPLE)) == {"boolq": 2, INSTRUCTION: 1}


def test_a_template_that_sets_share_is_not_guessed(tmp_path):
    (bare,) = read_file(write(tmp_path / "rows.json", [TWO]), "train")
    assert (bare.task, bare.gold) == (INSTRUCTION, 1)
    assert bare.choices == ("the correct answer is answer1", "the correct answer is answer2")
    (named,) = read_file(write(tmp_path / "rows.json", [{**TWO, "task": "obqa"}]), "train")
    assert (named.task, named.choices, named.gold) == ("obqa", ("a", "b"), 1)
    with pytest.raises(UsageError, match='"task": "siqa"'):
        load(write(tmp_path / "rows.json", [TWO]), TASKS["siqa"], "train")


FREE = {
    "a usual answer": ("A planet?", "the correct answer is Mars."),
    "the lead alone": ("A planet?", "the correct answer is "),
    "a format that is asked about": ("What does 'Answer format: a/b' mean?", "That a or b is expected."),
    "a format of its own": ("Is it so?\nAnswer format: yes/no", "It is, so yes."),
    "a set's template, reasoned": (YES["instruction"], "It is, because it is. the correct answer is true"),
    "a set's template, another word": (YES["instruction"], "the correct answer is maybe"),
    "a shared template, another label": (TWO["instruction"], "the correct answer is answer3"),
}


def test_two_conversations_in_one_row_are_refused_by_line(tmp_path):
    """Where one of them is empty, the other is read."""
    messages = [{"role": "user", "content": "A planet?"}, {"role": "assistant", "content": "Mars."}]
    said = [{"from": "human", "value": "Another?"}, {"from": "gpt", "value": "Venus."}]
    rows = [{"messages": messages, "conversations": []}, {"messages": messages, "conversations": said}]
    with pytest.raises(UsageError, match=in_order("rows.jsonl:2", "messages and conversations")):
        read_file(write(tmp_path / "rows.jsonl", rows), "train")
    (example,) = read_file(write(tmp_path / "one.jsonl", rows[:1]), "train")
    assert example.question == "A planet?"


@pytest.mark.parametrize("kind", FREE)
def test_row_without_answer_contradicts_none(kind, tmp_path):
    asked, answered = FREE[kind]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    path = write(tmp_path / "rows.jsonl", [{"prompt": asked, "completion": answered}, {"messages": messages}])
    for example in read_file(path, "train"):
        assert (example.task, example.question, example.choices) == (INSTRUCTION, asked, (answered,))


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name a planet.\nBriefly.", "output": "Mars."},
        {"instruction": "Name a planet.\nBriefly.", "input": "", "output": "Mars."},
        {"instruction": "Name a planet.", "input": "Briefly.", "output": "Mars.", "system": "", "history": []},
        {
            "conversations": [
                {"from": "human", "value": "Name a planet.\nBriefly."},
                {"from": "gpt", "value": "Mars."},
            ],
            "tools": "",
        },
        {"prompt": "Name a planet.\nBriefly.", "response": "Mars."},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": text} for text in ("Name a planet.\n", "Briefly.")],
                },
                {"role": "assistant", "content": "Mars."},
            ],
        },
    ],
    ids=["alpaca", "alpaca, empty input", "alpaca, input", "sharegpt", "prompt and response", "parts"],
)
def test_rows_of_other_programs_are_prompt_and_completion(row, tmp_path):
    plain = {"prompt": "Name a planet.\nBriefly.", "completion": "Mars."}
    (one,) = read_file(write(tmp_path / "plain.jsonl", [plain]), "train")
    (other,) = read_file(write(tmp_path / "rows.jsonl", [row]), "train")
    assert other == one


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "A planet?", "output": "Mars.", "system": "Be brief."}, "system: not supported"),
        ({"prompt": "A planet?", "completion": "Mars.", "history": [["Hello", "Hi"]]}, "history: not supported"),
        ({"instruction": "A planet?", "input": 4, "output": "Mars."}, "input: not text"),
        ({"instruction": "A planet?", "input": "", "output": 4}, "its columns are instruction, input, output; a row"),
        ({"conversations": [{"from": "human", "value": "A planet?"}]}, "the last turn is not an answer"),
    ],
)
def test_unsupported_columns_are_refused(row, said, tmp_path):
    with pytest.raises(UsageError, match=f"rows.jsonl:1: {said}"):
        read_file(write(tmp_path / "rows.jsonl", [row]), "train")


@pytest.mark.parametrize("row", [YES, TWO, {**TWO, "task": "obqa"}], ids=["boolq", "shared", "named"])
def test_questions_of_sets_are_recognised_in_every_row_format(row, tmp_path):
    """So that its leaks are found."""
    spoken = {"prompt": row["instruction"], "completion": row["output"]}
    if "task" in row:
        spoken["task"] = row["task"]
    one, other = read_file(write(tmp_path / "rows.jsonl", [row, spoken]), "train")
    assert replace(other, id=one.id) == one and len(one.choices) == 2


def test_faults_come_together_with_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    kinds = "; a row has"
    rows = [
        ({"instruction": "x", "answer": 1}, kinds),
        ({**TWO, "answer": "answer3"}, "'answer3'"),
        ({**YES, "input": "more"}, kinds),
        (["a", "list"], "not list"),
        ({**TWO, "task": "arc"}, "task 'arc'"),
        ({**TWO, "task": "piqa"}, "piqa"),
        ({"instruction": "Answer format: a/b", "output": "c", "answer": "c"}, "a/b"),
        ({"instruction": "", "output": " ", "answer": ""}, "empty"),
        ({**YES, "answer": "false"}, "'false'"),
        ({"instruction": "A planet?", "output": "the correct answer is Mars", "answer": "Venus"}, "'Venus'"),
        ({"prompt": "A planet?", "completion": 4}, kinds),
    ]
    lines = [json.dumps(YES), "{not json}", "", *(json.dumps(row) for row, _ in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_file(path, "train")
    first, *faults = str(error.value).splitlines()
    assert says(first, f"{path}:2: ", "malformed")
    for line, (fault, (_, words)) in enumerate(zip(faults, rows, strict=True), start=4):
        assert says(fault, f"{path}:{line}: ", words)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"instruction": 1}', "malformed JSON (not an array)"),
        (b'[\n  {"instruction": 1},\n\n  {"a": }\n]', "line 4"),
        (b"[]", "no rows"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_malformed_arrays(tmp_path, content, said):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_file(path, "train")
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value) and "\n" not in str(error.value)


def test_faults_of_an_array_name_the_row(tmp_path):
    """A row of another set in a set's folder is one, too."""
    path = write(tmp_path / "piqa" / "train.json", [YES, {**YES, "answer": "maybe"}, {}])
    named = in_order(f"{path}: row 1: ", "piqa", f"{path}: row 2: ", f"{path}: row 3: ")
    with pytest.raises(UsageError, match=named):
        load(tmp_path, TASKS["piqa"], "train")
