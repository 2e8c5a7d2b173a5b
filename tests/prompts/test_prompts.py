"""The formats, letter by letter, on hand-written questions. Whole files: test_data_wheel.py."""

import pytest

from moslora.errors import UsageError
from moslora.prompts.formats import FORMATS
from moslora.prompts.instructions import instruction, labels, llm_adapters_row, parse_instruction
from moslora.tasks import COMMONSENSE, INSTRUCTION, Example, Option


def example(task, question, *choices, gold=1, **fields):
    return Example(f"{task}/train/0", task, question, choices, gold, **fields)


BOOLQ = example("boolq", "is ice cold", "true", "false", gold=0, context="Ice -- Frozen water.")
PIQA = example("piqa", "open a jar", "Turn the lid.", "Turn the table.")
SIQA = example("siqa", "Why?", "x", "y", "z", context="Ann left.")
HELLASWAG = example("hellaswag", "A man digs. he", "digs on.", "sings.", "naps.", "eats.", context="Digging")
WINOGRANDE = example("winogrande", "The cup broke because the _ was thin.", "cup", "table", gold=0)
ARC = example("arc_easy", "What is hot?", "ice", "fire", "snow", "rain", "fog")
OBQA = example("obqa", "Birds can", "fly", "melt", gold=0)
BARE = example(
    INSTRUCTION, "Say yes.\n\nAnswer format: yes/no", "the correct answer is yes", "the correct answer is no"
)

ANSWERS = "Please choose the correct answer to the question: "
INSTRUCTIONS = [
    (
        BOOLQ,
        "Please answer the following question with true or false, question: is ice cold?\n\nAnswer format: true/false",
    ),
    (
        PIQA,
        "Please choose the correct solution to the question: open a jar\n\n"
        "Solution1: Turn the lid.\n\nSolution2: Turn the table.\n\nAnswer format: solution1/solution2",
    ),
    (SIQA, ANSWERS + "Ann left. Why?\n\nAnswer1: x Answer2: y Answer3: z\n\nAnswer format: answer1/answer2/answer3"),
    (
        HELLASWAG,
        "Please choose the correct ending to complete the given sentence: Digging: A man digs. he\n\n"
        "Ending1: digs on. Ending2: sings. Ending3: naps. Ending4: eats.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
    ),
    (
        WINOGRANDE,
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        "The cup broke because the _ was thin.\n\nOption1: cup Option2: table Answer format: option1/option2",
    ),
    (
        ARC,
        ANSWERS + "What is hot?\n\nAnswer1: ice Answer2: fire Answer3: snow Answer4: rain Answer5: fog\n\n"
        "Answer format: answer1/answer2/answer3/answer4/answer5",
    ),
    (OBQA, ANSWERS + "Birds can\n\nAnswer1: fly Answer2: melt\n\nAnswer format: answer1/answer2"),
    (BARE, "Say yes.\n\nAnswer format: yes/no"),
]


@pytest.mark.parametrize(("example", "text"), INSTRUCTIONS, ids=lambda value: getattr(value, "task", ""))
def test_instruction(example, text):
    assert instruction(example) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ANSWERS + "no options\n\nAnswer format: answer1/answer2",
        ANSWERS + "q\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer3",
        ANSWERS + "q\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2 ",
        "Please: q\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2",
    ],
)
def test_parse_refuses_what_is_not_the_template(text):
    assert all(parse_instruction(text, task) is None for task in COMMONSENSE)


def test_llm_adapters_row():
    row = llm_adapters_row(PIQA)
    assert list(row) == ["instruction", "input", "output", "answer"]
    assert (row["input"], row["output"], row["answer"]) == ("", "the correct answer is solution2", "solution2")
    assert (llm_adapters_row(BARE)["output"], llm_adapters_row(BARE)["answer"]) == ("the correct answer is no", "no")
    assert labels(BARE) == ("yes", "no")


def test_label_format_has_one_prompt_for_training_and_evaluation():
    format = FORMATS["label"]
    prompt = instruction(OBQA) + "\n\n### Response:\n"
    assert format.train(OBQA) == Option(prompt, "the correct answer is answer1", 7)
    assert [option.answer[-8:] for option in format.options(OBQA)] == [" answer1", " answer2"]
    assert format.generation_prompt(OBQA) == prompt and not format.joint


def test_llm_adapters_format_differs_between_training_and_evaluation_as_theirs_does():
    """Their finetune.py and commonsense_evaluate.py, spaces at line ends included."""
    format = FORMATS["llm-adapters"]
    indent = 16 * " "
    request = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    trained = format.train(OBQA)
    assert trained.prompt + trained.answer == (
        f"{request}  \n\n{indent}### Instruction:\n{indent}{instruction(OBQA)}\n"
        f"{indent}\n{indent}### Response:\n{indent}the correct answer is answer1"
    )
    evaluated = (
        f"{request} \n\n{indent}### Instruction:\n{indent}{instruction(OBQA)}\n\n{indent}### Response:\n{indent}"
    )
    assert format.generation_prompt(OBQA) == evaluated
    assert {option.prompt for option in format.options(OBQA)} == {evaluated}
    assert format.joint


def test_braces_in_a_question_are_text():
    braced = example("obqa", "{instruction} {0}", "{a}", "b", gold=0)
    assert "{instruction} {0}" in FORMATS["label"].train(braced).prompt


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (BOOLQ, [("Question: is ice cold?\nAnswer:", " yes", 3), ("Question: is ice cold?\nAnswer:", " no", 2)]),
        (PIQA, [("Question: open a jar\nAnswer:", f" {choice}", len(choice)) for choice in PIQA.choices]),
        (SIQA, [("Q: Ann left. Why?\nA:", f" {choice}", 1) for choice in "xyz"]),
        (HELLASWAG, [("Digging: A man digs. he", f" {choice}", len(choice)) for choice in HELLASWAG.choices]),
        (
            WINOGRANDE,  # lm-eval divides by its choice string: the part before the blank with the option
            [(f"The cup broke because the {option}", " was thin.", 26 + len(option)) for option in ("cup", "table")],
        ),
        (ARC, [("Question: What is hot?\nAnswer:", f" {choice}", len(choice)) for choice in ARC.choices]),
        (OBQA, [("Birds can", " fly", 3), ("Birds can", " melt", 4)]),
    ],
    ids=lambda value: getattr(value, "task", ""),
)  # fmt: skip
def test_cloze(example, expected):
    format = FORMATS["cloze"]
    options = format.options(example)
    assert [(option.prompt, option.answer, option.characters) for option in options] == expected
    assert format.train(example) == options[example.gold]


def test_cloze_passage_differs_in_boolq_alone():
    with_passage = FORMATS["cloze-passage"].options(BOOLQ)
    assert with_passage[0].prompt == "Ice -- Frozen water.\nQuestion: is ice cold?\nAnswer:"
    assert with_passage[0].answer == " yes"
    for other in (PIQA, SIQA, HELLASWAG, WINOGRANDE, ARC, OBQA):
        assert FORMATS["cloze-passage"].options(other) == FORMATS["cloze"].options(other)


def test_cloze_cleans_raw_hellaswag_and_leaves_clean_text_alone():
    halves = {"ctx_a": "[header] How to dig [title] Get a spade.", "ctx_b": "then"}
    raw = example("hellaswag", "unused", "[step] Dig.", "a  [x] b", "c", "d", gold=0, context="Home", meta=halves)
    first, second, *_ = FORMATS["cloze"].options(raw)
    assert first.prompt == "Home: How to dig. Get a spade. Then"
    assert (first.answer, second.answer) == ("  Dig.", " a  b")  # lm-eval collapses pairs of spaces once
    clean = example("hellaswag", "q [kept]", " two", "b", "c", "d", gold=0, context="Home")
    assert FORMATS["cloze"].options(clean)[0].answer == "  two"


def test_white_space_at_the_end_of_a_prompt_belongs_to_the_answer():
    (first, _) = FORMATS["cloze"].options(example("obqa", "Birds can ", "fly", "melt", gold=0))
    assert (first.prompt, first.answer, first.characters) == ("Birds can", "  fly", 3)


def test_cloze_refuses_bare_rows_missing_passages_and_generation():
    with pytest.raises(UsageError, match=r"data\.format=label"):
        FORMATS["cloze"].train(BARE)
    with pytest.raises(UsageError, match="passage"):
        FORMATS["cloze-passage"].options(example("boolq", "is ice cold", "true", "false"))
    with pytest.raises(UsageError, match="protocol=cloze"):
        FORMATS["cloze"].generation_prompt(OBQA)
