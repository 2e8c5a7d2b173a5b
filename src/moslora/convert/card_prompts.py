"""The prompts of an adapter's tasks for its card, with placeholders for a question's own texts.

No row is shown: those of a local file may be nobody's business.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.prompts.formats import FORMATS, Format, make_format
from moslora.recipe import Recipe
from moslora.tasks import INSTRUCTION, TASKS, Example, OpenEnded, Task

USUAL_OPTIONS = 4
"""Number of options shown where only the rows tell it."""

FREE = "rows without a task"


class Prompt(NamedTuple):
    """How a question is asked."""

    prompts: tuple[str, ...]  # one; of WinoGrande's as cloze, whose prompt has the option in it, one for each
    answers: tuple[str, ...]  # that are scored; none where the model writes
    words: OpenEnded | None = None  # how an answer in words ends and counts


def prompts_of(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, *, tasks: Sequence[str]
) -> dict[Prompt, list[str]]:
    """Prompt -> the names of those of ``tasks`` that are asked by it; empty where the prompt is a chat template's, and
    the ``tokenizer`` is not at hand."""
    if tokenizer is not None:
        format = make_format(recipe.data.format, tokenizer)
    elif recipe.data.format in FORMATS:
        format = FORMATS[recipe.data.format]
    else:
        return {}
    known = {**TASKS, **recipe.own_tasks}
    found: dict[Prompt, list[str]] = {}
    for name in tasks:
        if name == INSTRUCTION:
            title, example = FREE, Example("card", name, "<instruction>", ("<response>",), 0)
        elif name in known and not known[name].is_text:
            title, example = name, _example(known[name])
        else:
            continue
        found.setdefault(_prompt(format, example), []).append(title)
    return found


def _example(task: Task) -> Example:
    question, context = task.placeholders
    if task.columns.context is None:
        context = None
    options = _options(task.columns.options)
    return Example("card", task.name, question, options, 0, context=context, wording=task.wording)


def _options(listed: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The options themselves where all rows have the same; otherwise placeholders."""
    if listed is None:
        return ("<answer>",)
    if isinstance(listed, str):
        count = listed.count(",") + 1 if listed.startswith("[") else USUAL_OPTIONS
        listed = ("{{ of the row }}",) * count
    return tuple(f"<option {number}>" if "{{" in text else text for number, text in enumerate(listed, start=1))


def _prompt(format: Format, example: Example) -> Prompt:
    options = format.options(example)
    prompts = tuple(dict.fromkeys(option.prompt for option in options))
    if isinstance(example.wording, OpenEnded):
        return Prompt(prompts, (), example.wording)
    if example.task == INSTRUCTION:
        return Prompt(prompts, ())
    return Prompt(prompts, tuple(dict.fromkeys(option.answer for option in options)))
