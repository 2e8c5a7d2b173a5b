"""The eight commonsense sets as one table.

The sets are those of LLM-Adapters (arXiv 2304.01933), on which MoSLoRA (arXiv 2406.11909, section 4.1) reports.
A set's size, location, columns, wording and splits are defined here and nowhere else.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence

from moslora.choices import Split

from .task import Columns, Hub, Task
from .wording import Numbered, Plain, TrueFalse

_TRAIN_TEST_DEV: Mapping[Split, str] = {"train": "train", "test": "test", "dev": "validation"}
_TRAIN_TEST: Mapping[Split, str] = {"train": "train", "test": "validation"}
"""Five sets have no public test labels: as in LLM-Adapters, their validation split is the test split."""

_ARC_COLUMNS = Columns(options="choices.text", answer="choices.label.index(answerKey)")  # letters or digits
_ANSWERS = Numbered("Please choose the correct answer to the question: ", "answer", most=5)


def _set(
    name: str, hub: Hub, rows: Sequence[int], columns: Columns, wording: Numbered | TrueFalse, folder: str = ""
) -> Task:
    """An entry with as many ``rows`` in its training, test and, where it has one, dev set."""
    splits = _TRAIN_TEST_DEV if len(rows) == 3 else _TRAIN_TEST
    counts = dict(zip(splits, rows, strict=True))
    return Task(name, columns, wording, splits, hub, folder=folder or name, rows=counts)


def _arc(name: str, folder: str, *rows: int) -> Task:
    hub = Hub("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", config=folder)
    return _set(name, hub, rows, _ARC_COLUMNS, _ANSWERS, folder)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _set(
            "boolq",
            Hub("google/boolq", "35b264d03638db9f4ce671b711558bf7ff0f80d5"),
            (9_427, 3_270),
            Columns(options=("true", "false"), answer="0 if answer else 1", context="passage"),
            TrueFalse("Please answer the following question with true or false, question: "),
        ),
        _set(
            "piqa",
            # The parquet copy that lm-eval reads; the original, ybisk/piqa, is a script.
            Hub("baber/piqa", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
            (16_113, 1_838),
            Columns(question="goal", options="[sol1, sol2]", answer="label"),
            Numbered("Please choose the correct solution to the question: ", "solution", 2, between="\n\n"),
        ),
        _set(
            "siqa",
            Hub(
                "allenai/social_i_qa",
                "537a2ec8ec565adc0b70b70752893e59e024df26",  # tip of refs/convert/parquet; main is a script
                data_files={"train": "default/train/0000.parquet", "validation": "default/validation/0000.parquet"},
            ),
            (33_410, 1_954),
            Columns(options="[answerA, answerB, answerC]", answer="label|int - 1", context="context"),
            dataclasses.replace(_ANSWERS, shown="{context} {question}", cloze="Q: {question}\nA:"),
            folder="social_i_qa",
        ),
        _set(
            "hellaswag",
            Hub("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
            (39_905, 10_042),
            Columns(
                question="ctx",
                options="endings",
                answer="label|int",
                context="activity_label",
                meta={"ctx_a": "ctx_a", "ctx_b": "ctx_b"},  # the cloze formats capitalise ctx_b
            ),
            Numbered(
                "Please choose the correct ending to complete the given sentence: ",
                "ending",
                most=4,
                shown="{context}: {question}",
                cloze="{question}",
            ),
        ),
        _set(
            "winogrande",
            Hub("allenai/winogrande", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", config="winogrande_xl"),
            (40_398, 1_267),
            Columns(question="sentence", options="[option1, option2]", answer="answer|int - 1"),
            Numbered(
                "Please choose the correct answer to fill in the blank to complete the given sentence: ",
                "option",
                most=2,
                before_format=" ",
            ),
        ),
        _arc("arc_easy", "ARC-Easy", 2_251, 2_376, 570),
        _arc("arc_challenge", "ARC-Challenge", 1_119, 1_172, 299),
        _set(
            "obqa",
            Hub("allenai/openbookqa", "388097ea7776314e93a529163e0fea805b8a6454", config="main"),
            (4_957, 500, 500),
            dataclasses.replace(_ARC_COLUMNS, question="question_stem"),
            dataclasses.replace(_ANSWERS, cloze="{question}"),
            folder="openbookqa",
        ),
    )
}

COMMONSENSE: tuple[str, ...] = tuple(TASKS)
"""Names of the eight sets, in the order of LLM-Adapters' tables."""

GROUP = "commonsense"
"""Name of all eight."""

PASSAGES = Task(name="passages", columns=Columns(), wording=Plain(), splits={})
"""Texts: the Wikipedia passages of BoolQ's test questions that no training row has (`moslora.data.sources`)."""

BUILT_IN: Mapping[str, Task] = {**TASKS, PASSAGES.name: PASSAGES}
"""All that can be evaluated by name."""


def split_names(names: str | Sequence[str], *, group: Sequence[str] = COMMONSENSE) -> tuple[str, ...]:
    """The names in ``"commonsense"``, the ``group``, in ``"boolq,piqa"`` or a list of these; each once, order kept."""
    parts = [part.strip() for part in ",".join([names] if isinstance(names, str) else names).split(",")]
    found = [name for part in parts if part for name in (group if part == GROUP else (part,))]
    return tuple(dict.fromkeys(found))


def unknown_names(names: Iterable[str], known: Sequence[str], *, files: Sequence[str] = ()) -> list[str]:
    """A line for each name that is not known, with the closest that is, or else ``files`` that may be meant."""
    faults = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1) or files
            hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(known)}"
            faults.append(f"unknown task {name!r}; {hint}")
    return faults
