"""Local files in LLM-Adapters' format, and rows of instructions and conversations as other programs write them.

LLM-Adapters' rows have ``instruction``, ``input`` (empty), ``output`` and ``answer``. They are in a folder
``<llm_adapters_name>/{train,test,dev}.json[l]`` like LLM-Adapters' ``dataset/``, or in one file of mixed rows, also as
CSV or Parquet (`moslora.data.row_files`). An instruction is parsed into question and choices by the exact templates.
SIQA, ARC and OpenBookQA share a template, so in a mixed file their rows need the extra key ``task``. All other rows are
bare instructions, which can be trained on but not scored.

Rows of two texts are read in the same way: Alpaca's (no ``answer``, and ``input`` may have a text), ``prompt`` and
``completion``, ``messages``, and ShareGPT's ``conversations``. They name no answer that the output could contradict.
Several turns, or a system message, are a `Conversation`.
"""

import re
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from moslora.choices import BadRows, Split
from moslora.data.row_files import has_rows, read_rows
from moslora.errors import UsageError
from moslora.prompts.instructions import llm_adapters_row, parse_instruction
from moslora.recipe.builtin import printable
from moslora.tasks import COMMONSENSE, INSTRUCTION, RESPONSE_LEAD, SAME_INSTRUCTION, Conversation, Example, Task, Turn

_ANSWER_FORMAT = re.compile(r"Answer format: ([^\s/]+(?:/[^\s/]+)+)\s*\Z")
"""Pattern of the end of an instruction that lists the names of its options."""

_UNREAD = ("history", "system", "tools", "functions")
"""Columns of other programs whose text would belong to the prompt."""

KINDS = (
    "instruction, output, and an answer beside an empty input, or an input and no answer; or prompt and completion, or"
    " prompt and response; or messages; or conversations"
)
"""Columns that a row may have, for messages."""

_TURNS = {
    "messages": ("role", "content", {"system": "system", "user": "user", "assistant": "assistant"}),
    "conversations": ("from", "value", {"system": "system", "human": "user", "gpt": "assistant"}),
}
"""Columns of conversations, each with the keys of a turn's speaker and text, and the role of each speaker."""


def find_file(folder: Path, task: Task, split: Split) -> Path | None:
    """Find a set's file of a split, ``.json`` or ``.jsonl``."""
    for suffix in (".json", ".jsonl"):
        path = folder / f"{task.folder}/{split}{suffix}"
        if path.is_file():
            return path
    return None


def load(source: Path, task: Task, split: Split) -> list[Example]:
    """Load one split of one set from its file in a folder; from a mixed file, which has no splits, all rows of the
    set."""
    if source.is_dir():
        path = find_file(source, task, split)
        if path is None:
            file = f"{task.folder}/{split}.json or .jsonl"
            raise UsageError(f"{source}: no {file} in this folder (the layout of LLM-Adapters' dataset/)")
        return read_file(path, split, task=task.name)
    examples = [example for example in read_file(source, split) if example.task == task.name]
    if not examples:
        raise UsageError(
            f"{source}: no rows of {task.name}; in a mixed file rows of {', '.join(SAME_INSTRUCTION)} need a key such"
            f' as "task": "{task.name}"'
        )
    return examples


def read_file(path: Path, split: Split, *, task: str | None = None, bad_rows: BadRows = "stop") -> list[Example]:
    """Read all rows of a file; ``task`` names the set that all rows belong to, if it is known beforehand."""
    return read_rows(path, partial(example_from_row, split=split, task=task), bad_rows=bad_rows)


def read_texts(path: Path, task: Task) -> list[Example]:
    """Read the texts of a file, each once: column ``text`` of its rows, or the paragraphs of plain text."""
    texts = read_rows(path, lambda row, _: task.text(row.get("text")), plain=not has_rows(path))
    return list({text.id: text for text in texts}.values())


def example_from_row(row: dict[str, Any], number: int, *, split: Split, task: str | None = None) -> Example:
    """Make an example of a row. A row of LLM-Adapters becomes an example that renders to exactly this row.

    Args:
        row: its columns.
        number: position of the row, for the id.
        split: for the id.
        task: the set of the row's file, if it is known.

    Raises:
        ValueError: the row's fault.
    """
    named = _named_task(row, task)
    turns = _turns(row)
    if len(turns) > 2:
        if named:
            raise ValueError(f"several turns or a system message do not follow the template of {named}")
        return Conversation.of(f"{INSTRUCTION}/{split}/{number}", turns)
    if turns:
        row = {"prompt": turns[0].content, "completion": turns[1].content}
    instruction, output, answer = _texts(row)
    (instruction + output + (answer or "")).encode()  # raises a ValueError for a lone surrogate
    if not (instruction.strip() and output.strip()):
        raise ValueError("instruction or output is empty; remove the row")
    matches = []
    for name in [named] if named else COMMONSENSE:
        example = _of_task(instruction, output, answer, id=f"{name}/{split}/{number}", task=name)
        if example is not None:
            matches.append(example)
    if len(matches) == 1:
        return matches[0]
    response = output.removeprefix(RESPONSE_LEAD)
    if answer is not None and response != output and not response.startswith(answer):
        raise ValueError(f"the output contradicts the answer {answer!r}")
    if named is not None:
        raise ValueError(f"instruction or output does not follow the template of {named}")
    return _bare(instruction, output, answer, id=f"{INSTRUCTION}/{split}/{number}")


def _named_task(row: dict[str, Any], of_file: str | None) -> str | None:
    """Name of the set that a row names, or else of its file's set."""
    named = row.get("task") or of_file
    allowed = [of_file] if of_file else COMMONSENSE
    if named and named not in allowed:
        raise ValueError(f"task {named!r}: must be {' or '.join(allowed)} in this file")
    return named


def _turns(row: dict[str, Any]) -> list[Turn]:
    """Read the turns of a row's conversation; any other row has none."""
    unread = [key for key in _UNREAD if row.get(key)]
    if unread:
        raise ValueError(f"{', '.join(unread)}: not supported; move the text into a turn, or remove the column")
    turns: list[Turn] = []
    columns = [column for column in _TURNS if row.get(column) and isinstance(row[column], list)]
    if len(columns) > 1:
        raise ValueError(f"{' and '.join(columns)}: two conversations in one row; remove one of these columns")
    for column in columns:
        by, text, roles = _TURNS[column]
        system, *speakers = roles
        in_turn = cycle(speakers)
        for number, turn in enumerate(row[column], start=1):
            where = f"{column}, turn {number}"
            turn = turn if isinstance(turn, dict) else {}
            speaker, content = turn.get(by), _text_of_parts(turn.get(text), where=where)
            expected = system if speaker == system and number == 1 else next(in_turn)
            if speaker != expected:
                order = f"{' and '.join(speakers)} must alternate, after an optional {system}"
                raise ValueError(f"{where}: {by} {speaker!r}: must be {expected!r}; {order}")
            others = [key for key, value in turn.items() if key not in (by, text) and value not in (None, "", [], {})]
            if others:
                raise ValueError(f"{where}: {printable(', '.join(others))}: not supported; remove it, or the row")
            if not isinstance(content, str) or not content.strip():
                raise ValueError(f"{where}: {text} is empty or not text")
            content.encode()
            turns.append(Turn(roles[speaker], content))
    if turns and turns[-1].role != "assistant":
        raise ValueError("the last turn is not an answer, so there is nothing to learn; remove that turn, or the row")
    return turns


def _text_of_parts(content: Any, *, where: str) -> Any:
    """Join the texts of a turn that is a list of parts, as OpenAI writes it; return anything else as it is."""
    if not isinstance(content, list):
        return content
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: only texts are supported in a list of parts, no images; remove the row")
    return "".join(texts)


def _texts(row: dict[str, Any]) -> tuple[str, str, str | None]:
    """Find instruction, output and answer of a row; only LLM-Adapters' rows have an answer."""
    match row:
        case {"prompt": str(prompt), "completion": str(output)} | {"prompt": str(prompt), "response": str(output)}:
            return prompt, output, None
        case {"instruction": str(prompt), "output": str(output), "answer": str(answer)} if not row.get("input"):
            return prompt, output, answer
        case {"instruction": str(prompt), "output": str(output)} if "answer" not in row:
            text = row.get("input") or ""
            if not isinstance(text, str):
                raise ValueError("input: not text")
            return f"{prompt}\n{text}" if text else prompt, output, None  # joined like LLaMA-Factory's
    raise ValueError(
        f"its columns are {printable(', '.join(row))}; a row has {KINDS}, all of them texts. For other columns, declare"
        " a task of your own in a recipe's section `tasks` (docs/tasks.md)"
    )


def _of_task(instruction: str, output: str, answer: str | None, *, id: str, task: str) -> Example | None:
    """Parse a row as a question of ``task``; ``None`` if it does not follow the task's template."""
    parsed = parse_instruction(instruction, task)
    if parsed is None:
        return None
    context, question, choices = parsed
    wanted = output.removeprefix(RESPONSE_LEAD) if answer is None else answer
    for gold in range(len(choices)):
        example = Example(id, task, question, choices, gold, context=context)
        rendered = llm_adapters_row(example)
        if rendered["answer"] == wanted:
            return example if rendered["output"] == output else None  # such as a reasoned answer
    if answer is not None:
        raise ValueError(f"answer {answer!r} is not among the options of the instruction")
    return None


def _bare(instruction: str, output: str, answer: str | None, *, id: str) -> Example:
    """Make a bare instruction of a row, with its response, or with a response for each option that it lists."""
    listed = _ANSWER_FORMAT.search(instruction)
    names = listed[1].split("/") if listed else []
    if names and answer is not None and answer not in names:
        raise ValueError(f"answer {answer!r} is not among the options {'/'.join(names)}")
    responses = tuple(RESPONSE_LEAD + name for name in names)
    if output in responses and answer in (None, output.removeprefix(RESPONSE_LEAD)):
        return Example(id, INSTRUCTION, instruction, responses, responses.index(output))
    return Example(id, INSTRUCTION, instruction, (output,), 0)
