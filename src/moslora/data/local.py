"""Local files in LLM-Adapters' format: rows of ``instruction``, ``input`` (empty), ``output`` and ``answer``.

Two layouts: a folder ``<llm_adapters_name>/{train,test,dev}.json[l]`` like LLM-Adapters' ``dataset/``, or one file of
mixed rows. An instruction is parsed into its question and choices by the exact templates. SIQA, ARC and OpenBookQA
share one template, so in a mixed file their rows need the extra key ``task``. Without it, and with any other text, a
row stays a bare instruction, which can be trained on but not scored. So does a row of ``prompt`` and ``completion``, or
of ``messages``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moslora.choices import Split
from moslora.errors import UsageError, capped
from moslora.prompts import RESPONSE_LEAD, llm_adapters_row, parse_instruction
from moslora.tasks import COMMONSENSE, INSTRUCTION, TASKS, Example, Task


def find_file(folder: Path, task: Task, split: Split) -> Path | None:
    """The set's file of a split, ``.json`` or ``.jsonl``."""
    found = (folder / f"{task.folder}/{split}{suffix}" for suffix in (".json", ".jsonl"))
    return next((path for path in found if path.is_file()), None)


def load(source: Path, task: Task, split: Split) -> list[Example]:
    """One split of one set: its file in a folder, or its rows in a mixed file, which has no splits."""
    if source.is_dir():
        if path := find_file(source, task, split):
            return read_file(path, split, task=task.name)
        name = f"{task.folder}/{split}"
        raise UsageError(f"{source}: no {name}.json or .jsonl in this folder (the layout of LLM-Adapters' dataset/)")
    if examples := [example for example in read_file(source, split) if example.task == task.name]:
        return examples
    raise UsageError(
        f"{source}: no rows of {task.name}; in a mixed file rows of siqa, arc_easy, arc_challenge and obqa need a"
        f' key such as "task": "{task.name}"'
    )


def read_file(path: Path, split: Split, *, task: str | None = None) -> list[Example]:
    """All rows of a file in LLM-Adapters' format; arguments as in `example_from_row`."""
    return read_rows(path, lambda row, number: example_from_row(row, split=split, number=number, task=task))


def read_rows(path: Path, read: Callable[[dict[str, Any], int], Example]) -> list[Example]:
    """The rows of a file by ``read``, which gets a row and its number, from 0.

    A file has one object a line if its name ends in ``.jsonl``, else one array of objects.

    Raises:
        UsageError: the faults, by line in JSONL and by the row's number, from 1, in an array; the same fault once.
    """
    examples: list[Example] = []
    faults: dict[str, list[str]] = {}
    for number, (place, row) in enumerate(_rows(path)):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"expected an object with the columns of a row; found {type(row).__name__}")
            examples.append(read(row, number))
        except ValueError as fault:
            faults.setdefault(str(fault), []).append(place)
    if faults:
        also = {fault: f" (and {len(places) - 1} more rows)" if places[1:] else "" for fault, places in faults.items()}
        raise UsageError(capped([f"{path}:{places[0]}: {fault}{also[fault]}" for fault, places in faults.items()]))
    if not examples:
        raise UsageError(f"{path}: contains no rows")
    return examples


def _rows(path: Path) -> list[tuple[str, Any]]:
    """(place, row) pairs; for a line that is not JSON, a ValueError in place of the row."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if path.suffix == ".jsonl":
        # splitlines() also breaks at characters that JSON strings may contain unescaped.
        return [(f"{n}", _parsed(line)) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = _parsed(text, whole=True)
    if not isinstance(rows, list):
        fault = rows if isinstance(rows, ValueError) else "malformed JSON (not an array)"
        raise UsageError(f"{path}: {fault}; a .json file is one array of rows, a .jsonl file has one row a line")
    return [(f" row {n}", row) for n, row in enumerate(rows, start=1)]


def _parsed(text: str, *, whole: bool = False) -> Any:
    """JSON, or what is wrong with it; in a ``whole`` file also where."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return ValueError(f"malformed JSON ({error if whole else getattr(error, 'msg', error)})")


def example_from_row(row: dict[str, Any], *, split: Split, number: int, task: str | None = None) -> Example:
    """A row of LLM-Adapters as an example that renders back to exactly this row.

    ``split`` and ``number``, the row's position, go into the id; ``task`` is as in `read_file`.

    Raises:
        ValueError: what is wrong with the row.
    """
    row = _as_instruction(row)
    missing = [key for key in ("instruction", "output", "answer") if not isinstance(row.get(key), str)]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing or not text; a row has instruction, input, output, answer")
    instruction, output, answer = (row[key] for key in ("instruction", "output", "answer"))
    (instruction + output + answer).encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    if not (instruction.strip() and output.strip()):
        raise ValueError("instruction or output is empty; remove the row")
    if row.get("input"):
        raise ValueError('"input" must be empty; move its text into the instruction')
    named = row.get("task", task)
    if named is not None and (not isinstance(named, str) or named not in TASKS):
        raise ValueError(f"task {named!r}: must be one of {', '.join(COMMONSENSE)}")
    if task is not None and named != task:
        raise ValueError(f"task {named!r}: must be {task!r} in this file")

    matches = [e for name in ([named] if named else COMMONSENSE) if (e := _of_task(row, name, split, number))]
    if len(matches) == 1:
        return matches[0]
    if output.startswith(RESPONSE_LEAD) and not output.removeprefix(RESPONSE_LEAD).startswith(answer):
        raise ValueError(f"the output contradicts the answer {answer!r}")
    if named is not None:
        raise ValueError(f"instruction or output does not follow the template of {named}")
    return _bare(row, split, number)


def _as_instruction(row: dict[str, Any]) -> dict[str, Any]:
    """A row of ``prompt`` and ``completion``, or of ``messages`` (a user's, the assistant's), as an instruction."""
    if "prompt" in row and "completion" in row:
        asked, answered = row["prompt"], row["completion"]
    elif "messages" in row:
        match row["messages"]:
            case [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]:
                pass
            case _:
                raise ValueError("messages: must be one of role user and one of role assistant, in this order")
    else:
        return row
    return {"instruction": asked, "input": "", "output": answered, "answer": answered}


def _of_task(row: dict[str, str], task: str, split: Split, number: int) -> Example | None:
    parsed = parse_instruction(row["instruction"], task)
    if parsed is None:
        return None
    context, question, choices = parsed
    id = f"{task}/{split}/{number}"
    for gold in range(len(choices)):
        example = Example(id, task, question, choices, gold, context=context)
        rendered = llm_adapters_row(example)
        if rendered["answer"] == row["answer"]:
            # A template's question with another output (a reasoned answer, say) is a bare instruction.
            return example if rendered["output"] == row["output"] else None
    raise ValueError(f"answer {row['answer']!r} is not among the options of the instruction")


def _bare(row: dict[str, str], split: Split, number: int) -> Example:
    id = f"{INSTRUCTION}/{split}/{number}"
    instruction, output, answer = row["instruction"], row["output"], row["answer"]
    _, _, answer_format = instruction.rpartition("Answer format: ")
    names = answer_format.split("/") if "Answer format: " in instruction else []
    if names and answer not in names:
        raise ValueError(f"answer {answer!r} is not among the options {'/'.join(names)}")
    if names and output == RESPONSE_LEAD + answer:
        responses = tuple(RESPONSE_LEAD + name for name in names)
        return Example(id, INSTRUCTION, instruction, responses, names.index(answer))
    return Example(id, INSTRUCTION, instruction, (output,), 0)
