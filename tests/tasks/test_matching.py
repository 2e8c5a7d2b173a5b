"""Answers in words: what is read and what counts, by lm-eval's own filters and metric; rows that become questions."""

from typing import Any

import pytest

from moslora.recipe import load_recipe
from moslora.tasks import Example, OpenEnded
from moslora.tasks.matching import NUMBER, Contains, Exact, Number, Pattern

lm_eval_metrics = pytest.importorskip("lm_eval.api.metrics", reason="lm-eval is a development dependency")
lm_eval_filters = pytest.importorskip("lm_eval.filters.extraction")

TEXTS = [
    "Sunset Boulevard",
    "  sunset boulevard. ",
    "The Sunset  Boulevard",
    "Sunset-Boulevard!",
    "a sunset on the boulevard",
    "Sunset Boulevard, by Lloyd Webber",
    "",
    "96",
    "The answer is 96.",
    "5 + 91 = 96",
    "1,234",
    "$1,234.50",
    "so 1234 of 18",
    "63-63",
    "-86",
    "#### 18",
    "#### 1,234",
    "4*5=20\n#### 20\n#### 7",
    "nothing",
]
ACCEPTED = ["Sunset Boulevard", "Sunset Blvd.", "96", "-86", "1234", "18", "20", "7"]


def task(declared):
    return load_recipe("smollm2-135m", [f"tasks.mine={declared}"]).own_tasks["mine"]


def wording(declared):
    words = task(declared).wording
    assert isinstance(words, OpenEnded)
    return words


def by_lm_eval(read, accepted, **options):
    score = lm_eval_metrics.exact_match_hf_evaluate([read], [accepted], **options)
    return bool(score["exact_match"])


def filtered(text, filter):
    ((read,),) = filter.apply([[text]], [{}])
    return str(read)


@pytest.mark.parametrize("ignore", [(), ("case",), ("punctuation",), ("case", "punctuation")])
def test_exact_is_lm_evals_exact_match(ignore):
    match = Exact(ignore)
    options = {f"ignore_{name}": name in ignore for name in ("case", "punctuation")}
    stripped = lm_eval_filters.WhitespaceFilter()
    found = 0
    for text in TEXTS:
        if "#" in text:  # lm-eval leaves the space that stood behind a sign
            continue
        theirs = " ".join(filtered(text, stripped).split())  # which leaves white space inside
        for accepted in ACCEPTED:
            expected = by_lm_eval(theirs, accepted, **options)
            assert (match.position(match.read(text), (accepted,)) == 0) == expected, (text, accepted)
            found += expected
    assert found


@pytest.mark.parametrize(
    ("declared", "filter"),
    [
        ("match: number", {"regex_pattern": NUMBER, "group_select": -1}),
        (
            "match: {pattern: '#### (-?[0-9.,]+)', compare: number}",
            {"regex_pattern": r"#### (\-?[0-9\.\,]+)"},  # gsm8k.yaml, strict-match
        ),
        (
            "match: {pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)', take: last, compare: number}",
            {"regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1},  # flexible-extract
        ),
        ("match: {pattern: '[A-Z]\\w+'}", {"regex_pattern": r"[A-Z]\w+"}),
    ],
)
def test_answers_read_equal_lm_evals_filters(declared, filter):
    match = wording(f"{{train: x, {declared}}}").match
    theirs = lm_eval_filters.RegexFilter(**filter, fallback="")
    read = {text: match.read(text) for text in TEXTS}
    assert read == {text: filtered(text, theirs) for text in TEXTS}
    assert len(set(read.values())) >= 3
    if not isinstance(match, Exact) and "number" in declared:
        of_gsm8k = {"regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$"], "ignore_case": True}
        for text, answer in read.items():
            for accepted in ("96", "-86", "1234", "18", "20", "7"):
                expected = by_lm_eval(answer, accepted, **of_gsm8k)
                assert (match.position(answer, (accepted,)) == 0) == expected, (text, accepted)


def test_articles_are_those_of_nq_open():
    ignore_articles = [r"\b(?:The |the |An |A |The |a |an )"]
    for text in ("The Sunset Boulevard", "an Apple a day", "theory of the an", "Anna and the King"):
        theirs = {"regexes_to_ignore": ignore_articles, "ignore_case": True, "ignore_punctuation": True}
        for other in ("sunset boulevard", "apple day", "theory of an", "Anna and King"):
            assert Exact().equal(text, other) == by_lm_eval(text, other, **theirs)


MATCHES = [
    (Exact(), "The  Beatles!", "beatles", True),
    (Exact(("case",)), "BEATLES.", "beatles", False),
    (Exact(), "!?", "beatles", False),
    (Exact(), " A.", "a", True),
    (Contains(), "It was the Beatles, I think", "The Beatles", True),
    (Contains(), "catalogue", "cat", False),
    (Contains(()), "It is lima.", "Lima", False),
    (Contains(), "“Lima”—or Lima/Callao", "lima", True),
    (Contains(), "costs 1,234 dollars", "1234", True),
    (Contains(), "costs 1,234.5 dollars", "234", False),
    (Contains(), "3.5", "3", False),
    (Exact(), "3.5", "35", False),
    (Exact(), "-5", "5", False),
    (Exact(), "−5", "-5", True),
    (Exact(), "Cafe\u0301", "caf\u00e9", True),
    (Contains(), "1.5 m", "15", False),
    (Contains(), "at -15", "15", False),
    (Contains(), "from 10-15 on", "15", True),
    (Number(), "1e5", "5", True),
    (Number(), "1,234.00", "1234", True),
    (Number(), "$.50", "0.5", True),
    (Number(), "3.5", "35", False),
    (Number(), "−3", "-3", True),
    (Number(), "10-3", "-3", False),
    (Pattern("#### (.+)", Number()), "#### none", "7", False),
    (Pattern("#### (.+)", Exact()), "#### None.", "none", True),
    (Pattern("x*", Exact()), "yes", "yes", False),
]


@pytest.mark.parametrize(("match", "text", "accepted", "right"), MATCHES)
def test_matches(match, text, accepted, right):
    position = match.position(match.read(text), ("never", accepted))
    assert position == (1 if right else None)


ROWS: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    ("match: exact", {"question": "q", "answer": "a"}, ("a",), "a"),
    ("match: number", {"question": "q", "answer": 96}, ("96",), "96"),
    ("match: exact", {"question": "q", "answer": ["the b", "b", "c", "b"]}, ("the b", "b", "c"), "the b"),
    ("match: number", {"question": "q", "answer": ["ten", "10", 10]}, ("10",), "10"),
    (
        "answer: \"answer.split('#### ')[1]\", response: answer, match: {pattern: '#### (.+)', compare: number}",
        {"question": "q", "answer": "2 + 2 = 4\n#### 4"},
        ("4",),
        "2 + 2 = 4\n#### 4",
    ),
    ("match: contains, response: '{{answer}} it is'", {"question": "q", "answer": "b"}, ("b",), "b it is"),
]


@pytest.mark.parametrize(("declared", "row", "accepted", "response"), ROWS)
def test_rows_become_open_ended_questions(declared, row, accepted, response):
    example = task(f"{{train: x, {declared}}}").example(row, "mine/train/0")
    assert (example.choices, example.gold, example.response) == (accepted, 0, response)
    assert example.is_open_ended and not example.is_text


@pytest.mark.parametrize(
    ("declared", "row", "said"),
    [
        ("match: number", {"question": "q", "answer": "ten"}, "answer 'ten': nothing can equal it by match: number"),
        ("match: exact", {"question": "q", "answer": []}, "answer: is an empty list"),
        ("match: exact", {"question": "q", "answer": ["a", " "]}, "answer: is empty"),
        (
            "match: exact",
            {"question": "q", "answer": "a\n\nb"},
            r"response: contains '\n\nb', at which a generated text ends",
        ),
        (
            "match: {pattern: '#### (.+)'}",
            {"question": "q", "answer": "a"},
            "response: would count as wrong: it is read as",
        ),
        ("", {"question": "q", "answer": "a"}, "options: 'options' is undefined; the row has question, answer"),
    ],
)
def test_unanswerable_rows_are_refused(declared, row, said):
    with pytest.raises(ValueError) as error:
        task(f"{{train: x, {declared}}}").example(row, "mine/train/0")
    assert said in str(error.value)


def test_rows_to_evaluate_need_no_response():
    """A test file without solutions, and a pattern that the bare accepted answer does not follow."""
    solved = task("{train: x, test: y, response: solution, match: {pattern: '#### (.+)', compare: number}}")
    row = {"question": "q", "answer": "4"}
    with pytest.raises(ValueError, match="response: 'solution' is undefined"):
        solved.example(row, "mine/train/0")
    example = solved.example(row, "mine/test/0", trained=False)
    assert (example.choices, example.response) == (("4",), "4")
    with pytest.raises(ValueError, match="nothing can equal it"):
        solved.example({**row, "answer": "four"}, "mine/test/0", trained=False)


def test_stop_texts_end_a_text_at_the_first():
    words = wording('{train: x, match: exact, stop: ["\\n", "Q:"]}')
    assert (
        words.before_stop("a Q: b\nc") == "a " and words.before_stop("a\nQ: b") == "a" and words.before_stop("a") == "a"
    )
    assert Example("i", "t", "q", ("a",), 0, wording=words) != Example("i", "t", "q", ("a",), 0)
