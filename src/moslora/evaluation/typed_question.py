"""Turn a question that a user types into an example of a task. Importing this does not load torch."""

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
"""Options of a true-or-false question, in the order of its choices."""

BARE = Task(
    name="question",
    columns=Columns(options=None),
    wording=OpenEnded(head="", match=Exact(), max_new_tokens=256, stop=()),
    splits={},
)
"""Task of a question without options and without a task: the prompt is the question, and no answer is known."""


def as_conversation(turns: Sequence[Turn]) -> Conversation:
    """Return an example that asks the last of ``turns``, after the turns before it, for an answer in words."""
    conversation = Conversation.of("question", [*turns, Turn("assistant", UNKNOWN_ANSWER)])
    return replace(conversation, task=BARE.name, wording=BARE.wording)


def as_example(
    question: str, options: Sequence[str], *, task: str | None = None, own: Mapping[str, Task] | None = None
) -> tuple[Example, tuple[str, ...]]:
    """Return a question as an example of a task, and the typed options in the order of the example's choices.

    Args:
        question: in the task's form: WinoGrande's has a "_", HellaSwag's begins with an activity and ": ".
        options: two or more options. They may be empty for an answer in words, for BoolQ, and for a task whose
            questions all have the same options. BoolQ's are true and false, or yes and no.
        task: name of the task whose prompt is used; ``None`` for the only fitting one of ``own``, else BoolQ if the
            options are yes and no or true and false, else ARC.
        own: tasks of a run's recipe.
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
            raise UsageError(f"task {entry.name}: is answered in words; omit every --option, or change --task")
    elif isinstance(words, TrueFalse):
        choices = TRUTHS[0]
        options = _as_truths(options or choices)
        if not options:
            fix = "omit them or change --task"
            raise UsageError(f"task {entry.name}: options must be yes and no, or true and false; {fix}")
    elif len(options) < 2:
        raise UsageError(f"{len(options)} option given; give two or more: --option A --option B, or one per line")
    try:
        context, text = words.read_typed(question)
    except ValueError as error:
        raise UsageError(f"task {entry.name}: {error}") from None
    wording = words if entry.own else None  # the eight sets' examples have none
    return Example("question", entry.name, text, choices, 0, context, wording=wording), options


def _entry(options: Sequence[str], task: str | None, own: Mapping[str, Task]) -> Task:
    """Return the named task, or the default one for these options."""
    if task is not None:
        entry, *others = resolve_tasks(task, own)
        if others:
            raise UsageError("--task: must be a single task for one question")
        return entry
    tasks = [task for task in own.values() if not task.is_text]
    if options:
        fitting = [task for task in tasks if not task.is_open_ended]
    else:
        fitting = [task for task in tasks if task.is_open_ended or task.fixed_options]
    for candidates in (fitting, tasks):
        if len(candidates) == 1:
            return candidates[0]
    if not options:
        return BARE
    return FOR_TRUTHS if _as_truths(options) else FOR_OPTIONS


def _as_truths(options: Sequence[str]) -> tuple[str, ...]:
    """Sort two options into the order of their pair in `TRUTHS`, ignoring upper case; empty if they are no pair."""
    lower = [option.lower() for option in options]
    for pair in TRUTHS:
        if sorted(pair) == sorted(lower):
            return tuple(options[lower.index(word)] for word in pair)
    return ()


def read_typed(stream: TextIO, *, options: Sequence[str]) -> tuple[str, list[str]]:
    """Read a question from one line, and its options, if none are given, from the lines up to an empty one."""
    question = read_line(stream, "question: ")
    all_options = list(options)
    if all_options or not question:
        return question, all_options
    option = read_line(stream, "option 1 (empty: none): ")
    while option:
        all_options.append(option)
        option = read_line(stream, f"option {len(all_options) + 1} (empty: done): ")
    return question, all_options


def read_line(stream: TextIO, prompt: str) -> str:
    """Read a line, after a ``prompt`` if the stream is a terminal; empty at the end of the stream."""
    if stream.isatty():
        print(prompt, end="", flush=True)
    try:
        return stream.readline().strip()
    except UnicodeDecodeError:
        raise UsageError("the input is not UTF-8 text") from None
