"""A question as it is typed, as an example of a task. Importing this does not load torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TextIO

from moslora.errors import UsageError
from moslora.recipe import resolve_tasks
from moslora.tasks import (
    FOR_OPTIONS,
    FOR_TRUTHS,
    UNKNOWN_ANSWER,
    Columns,
    Conversation,
    Example,
    OpenEnded,
    Task,
    TrueFalse,
    Turn,
)
from moslora.tasks.matching import Exact

TRUTHS = (("true", "false"), ("yes", "no"))
"""The options of a question of truths, in its order."""

BARE = Task(
    name="question",
    columns=Columns(options=None),
    wording=OpenEnded(head="", match=Exact(), max_new_tokens=256, stop=()),
    splits={},
)
"""Of a question without options and without a task: it is asked as it is, and nothing says what is right."""


def as_conversation(turns: Sequence[Turn]) -> Conversation:
    """The question in the last of ``turns``, which is answered in words behind those before it."""
    asked = Conversation.of("question", [*turns, Turn("assistant", UNKNOWN_ANSWER)])
    return replace(asked, task=BARE.name, wording=BARE.wording)


def as_example(
    question: str, options: Sequence[str], *, task: str | None = None, own: Mapping[str, Task] | None = None
) -> tuple[Example, tuple[str, ...]]:
    """The question as an example of a task, and the options as they were typed, in the order of its choices.

    Args:
        question: in the task's form: WinoGrande's has a "_", HellaSwag's begins with an activity and ": ".
        options: two or more, or none for a task whose questions all have the same; for BoolQ true and false, yes and
            no, or none; none for an answer in words.
        task: whose prompt to use; ``None`` for BoolQ's if the options are yes and no or true and false, else ARC's.
        own: the tasks of a run's recipe; the only one that is asked like this is the default.
    """
    question = question.strip()
    options = tuple(option.strip() for option in options if option.strip())
    if not question:
        raise UsageError("the question is empty; give it with --question, or type it")
    entry = _entry(options, task, own or {})
    words = entry.wording
    if words.is_text:
        raise UsageError(f"{entry.name}: a set of texts, not of questions; moslora eval measures them")
    options = options or entry.fixed_options
    choices = options
    if words.is_open_ended:
        choices = (UNKNOWN_ANSWER,)
        if options:
            raise UsageError(f"task {entry.name}: is answered in words; omit the options, or change --task")
    elif isinstance(words, TrueFalse):
        choices = TRUTHS[0]
        options = _as_truths(options or choices)
        if not options:
            fix = "omit them or change --task"
            raise UsageError(f"task {entry.name}: options must be yes and no, or true and false; {fix}")
    elif len(options) < 2:
        raise UsageError(f"{len(options)} option given; give two or more: --option A --option B, or one per line")
    try:
        context, asked = words.read_typed(question)
    except ValueError as error:
        raise UsageError(f"task {entry.name}: {error}") from None
    wording = words if entry.own else None  # those of the eight sets have none
    return Example("question", entry.name, asked, choices, 0, context, wording=wording), options


def _entry(options: Sequence[str], task: str | None, own: Mapping[str, Task]) -> Task:
    """The ``task`` that was named, or else the one whose prompt is used where none is."""
    if task is not None:
        entry, *others = resolve_tasks(task, own)
        if others:
            raise UsageError("--task: must be a single task for one question")
        return entry
    asked = [task for task in own.values() if not task.is_text]
    if options:
        fitting = [task for task in asked if not task.is_open_ended]
    else:
        fitting = [task for task in asked if task.is_open_ended or task.fixed_options]
    for candidates in (fitting, asked):
        if len(candidates) == 1:
            return candidates[0]
    if not options:
        return BARE
    return FOR_TRUTHS if _as_truths(options) else FOR_OPTIONS


def _as_truths(options: Sequence[str]) -> tuple[str, ...]:
    """The options in the order of `TRUTHS`, if they are two of them in any order and case; else none."""
    lower = [option.lower() for option in options]
    for pair in TRUTHS:
        if sorted(pair) == sorted(lower):
            return tuple(options[lower.index(word)] for word in pair)
    return ()


def read_typed(stream: TextIO, *, options: Sequence[str]) -> tuple[str, list[str]]:
    """Reads the question, one line, and the options if there are none, one per line up to an empty line or the end.
    Prints prompts on a terminal."""
    question = read_line(stream, "question: ")
    given = list(options)
    if given or not question:
        return question, given
    option = read_line(stream, "option 1 (empty: none): ")
    while option:
        given.append(option)
        option = read_line(stream, f"option {len(given) + 1} (empty: done): ")
    return question, given


def read_line(stream: TextIO, prompt: str) -> str:
    """Reads a line, empty at the end; on a terminal behind ``prompt``."""
    if stream.isatty():
        print(prompt, end="", flush=True)
    try:
        return stream.readline().strip()
    except UnicodeDecodeError:
        raise UsageError("the input is not UTF-8 text") from None
