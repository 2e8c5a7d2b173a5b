"""A question as it is typed, as an example of a task. Importing this does not load torch."""

from collections.abc import Mapping, Sequence
from typing import TextIO

from moslora.errors import UsageError
from moslora.recipe import resolve_tasks
from moslora.tasks import Example, Task

TRUTHS = (("true", "false"), ("yes", "no"))
"""The options of a BoolQ question, in its order."""


def as_example(
    question: str, options: Sequence[str], *, task: str | None = None, own: Mapping[str, Task] | None = None
) -> tuple[Example, tuple[str, ...]]:
    """The question as an example of a task, and its options as typed, in the order of the choices.

    Args:
        question: in the task's form: WinoGrande's has a "_", HellaSwag's begins with an activity and ": ".
        options: two or more; for BoolQ true and false, yes and no, or none.
        task: whose prompt to use; ``None`` for BoolQ's if the options are yes and no or true and false, else ARC's.
        own: the tasks of a run's recipe; the only one with questions is the default.
    """
    question, options = question.strip(), tuple(option.strip() for option in options if option.strip())
    if not question:
        raise UsageError("the question is empty; give it with --question, or type it")
    truths = [option.lower() for option in options]
    order = next((pair for pair in TRUTHS if set(pair) == set(truths)), None)
    asked = [name for name, its in (own or {}).items() if not its.is_text]
    default = asked[0] if len(asked) == 1 else "boolq" if order else "arc_easy"
    entry, *others = resolve_tasks(task or default, own)
    if others:
        raise UsageError("--task: must be a single task for one question")
    if entry.name == "boolq":
        if options and not order:
            raise UsageError("task boolq: options must be yes and no, or true and false; omit them or change --task")
        names = tuple(options[truths.index(word)] for word in order) if order else TRUTHS[0]
        return Example("question", "boolq", question.rstrip("? "), TRUTHS[0], 0), names
    if len(options) < 2:
        raise UsageError(f"{len(options)} option given; give two or more: --option A --option B, or one a line")
    context = None
    if entry.name == "winogrande" and question.count("_") != 1:
        raise UsageError("task winogrande: the sentence must contain one _, where the options go")
    if entry.name == "hellaswag":
        context, found, question = question.partition(": ")
        if not found:
            raise UsageError("task hellaswag: must begin with an activity and a colon, as in 'Baking: She takes'")
    wording = entry.wording if entry.own else None
    return Example("question", entry.name, question, options, 0, context, wording=wording), options


def read_typed(stream: TextIO, *, question: str | None, options: Sequence[str]) -> tuple[str, list[str]]:
    """Reads the question if it is missing, one line, and the options if there are none, one per line up to an empty
    line or the end. Prints prompts on a terminal."""

    def line(prompt: str) -> str:
        if stream.isatty():
            print(prompt, end="", flush=True)
        try:
            return stream.readline().strip()
        except UnicodeDecodeError:
            raise UsageError("the input is not UTF-8 text") from None

    question, given = line("question: ") if question is None else question, list(options)
    while question and not options and (option := line(f"option {len(given) + 1} (none: done): ")):
        given.append(option)
    return question, given
