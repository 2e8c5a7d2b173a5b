"""How a model is asked, for its card: the prompts of its tasks as Python text, with placeholders for a question's own.

No row is shown: those of a local file may be nobody's business.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.prompts.formats import FORMATS, Format, make_format
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import Recipe
from moslora.tasks import INSTRUCTION, TASKS, Columns, Example, OpenEnded, Task

USUAL_OPTIONS = 4
"""Number of options shown where only the rows tell it."""

FREE = "rows without a task"
READ_FREE = "what the model writes after `prompt`, up to its end-of-sequence token, is its answer"


def section(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, *, tasks: Sequence[str]) -> str:
    """The card's text: how the model is asked, and the prompt of each of ``tasks``, those that are equal once.

    ``tokenizer``: for its chat template; ``None`` if it is not at hand.
    """
    name = recipe.data.format
    if name != "chat":
        format = FORMATS[name]
    elif tokenizer is not None:
        format = make_format(name, tokenizer)
    else:
        return "Format `chat`: the question as a user's message in the base's own chat template."
    examples = list(_examples(recipe.own_tasks, tasks))
    blocks: dict[str, list[str]] = {}
    for title, example in examples:
        blocks.setdefault(_block(format, example), []).append(title)
    asked = f"Format `{name}`, protocol `{recipe.evaluation.protocol}`"
    reading = PROTOCOLS[recipe.evaluation.protocol].card
    if [*blocks.values()] == [[FREE]]:
        reading = READ_FREE
    elif examples and all(example.is_open_ended for _, example in examples):
        asked = f"Format `{name}`"
        reading = READ_FREE
    head = f"{asked}: {reading}. {_tokens(format)}."
    texts = [f"{', '.join(titles)}:\n\n{block}" for block, titles in blocks.items()]
    return "\n\n".join([head, *texts])


def _tokens(format: Format) -> str:
    if format.name == "chat":
        return "Its special tokens are in the text: encode it with `add_special_tokens=False`"
    if format.joint:
        return "Prompt and answer are encoded as one text, after BOS where the tokenizer adds one"
    return "Prompt and answer are encoded apart, after BOS where the tokenizer adds one"


def _examples(own: Mapping[str, Task], names: Sequence[str]) -> Iterator[tuple[str, Example]]:
    """(title, example) of every task, among the built-in ones and ``own``, with placeholders as its texts."""
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
    example = Example("card", task.name, question, _options(task.columns), 0, context=context)
    if task.own:
        return replace(example, wording=task.wording)
    return example


def _options(columns: Columns) -> tuple[str, ...]:
    """The options themselves where all rows have the same; otherwise placeholders."""
    listed = columns.options
    options = []
    if isinstance(listed, tuple):
        for number, text in enumerate(listed, start=1):
            if "{{" in text:
                text = f"<option {number}>"
            options.append(text)
        return tuple(options)
    count = USUAL_OPTIONS
    if listed is None:
        return ("<answer>",)
    if listed.startswith("["):
        count = listed.count(",") + 1
    return tuple(f"<option {number}>" for number in range(1, count + 1))


def _block(format: Format, example: Example) -> str:
    """Python text that makes exactly the prompt and the answers."""
    options = format.options(example)
    prompts = {option.prompt: None for option in options}
    shown = [f"prompt = {_literal(next(iter(prompts)))}"]
    if len(prompts) > 1:  # WinoGrande's, as cloze: the option is in the prompt
        listed = "".join(f"    {_quoted(prompt)},\n" for prompt in prompts)
        shown = [f"prompts = [\n{listed}]"]
    if isinstance(example.wording, OpenEnded):
        shown.append(_reading(example.wording))
    elif example.task != INSTRUCTION:
        answers = dict.fromkeys(option.answer for option in options)
        quoted = ", ".join(_quoted(answer) for answer in answers)
        shown.append(f"answers = [{quoted}]")
    text = "\n".join(shown)
    return f"```python\n{text}\n```"


def _reading(words: OpenEnded) -> str:
    """A comment that says how a written answer ends and counts."""
    ends = ", ".join(["the end-of-sequence token", *map(_quoted, words.stop)])
    return f"# ends at {ends} or after {words.max_new_tokens} tokens; read is {words.match.says}"


def _literal(text: str) -> str:
    """A line of Python for each line of the text."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2:
        return _quoted(text)
    quoted = "".join(f"    {_quoted(line)}\n" for line in lines)
    return f"(\n{quoted})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
