"""The prompts of an adapter's tasks for its card, with placeholders for a question's own texts.

No row is shown: those of a local file may be nobody's business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
    found: dict[Prompt, list[str]] = {}
    for name, example in _examples(recipe.own_tasks, tasks):
        found.setdefault(_prompt(format, example), []).append(name)
    return found


def _examples(own: Mapping[str, Task], names: Sequence[str]) -> Iterator[tuple[str, Example]]:
    """(name, example) of every task, among the built-in ones and ``own``, with placeholders as its texts."""
    known = {**TASKS, **own}
    for name in names:
        if name == INSTRUCTION:
            yield FREE, Example("card", INSTRUCTION, "<instruction>", ("<response>",), 0)
        elif name in known and not known[name].is_text:
            yield name, _example(known[name])


def _example(task: Task) -> Example:
    question, context = task.placeholders
    if task.columns.context is None:
        context = None
    example = Example("card", task.name, question, _options(task.columns.options), 0, context=context)
    if task.own:
        return replace(example, wording=task.wording)
    return example


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
