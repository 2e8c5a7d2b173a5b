"""One example as text, as tokens with the label mask, and its options: the output of ``moslora data show``."""

from collections.abc import Iterable, Iterator, Sequence

from moslora.choices import FormatName, LossOn, Split
from moslora.data.encode import IGNORE_INDEX, Encoder, encode_examples
from moslora.data.sources import load_examples, load_training
from moslora.errors import UsageError
from moslora.prompts.formats import make_format
from moslora.prompts.protocols import joined_names, readers
from moslora.tasks import Example, Task


def show_rows(
    tasks: Sequence[Task],
    encoder: Encoder,
    *,
    source: str,
    whole: bool,
    split: Split | None,
    row: int,
    format: FormatName,
    loss_on: LossOn,
) -> Iterator[str]:
    """A row of each task as plain text; of a ``whole`` source, each task of its training rows, free ones included.

    ``split``: by default the training rows, or of a task without any its test rows.
    """
    if whole and split in (None, "train"):
        found = _by_task(load_training(tasks, source=source), split="train")
    else:
        found = {}
        for task in tasks:
            there = split or ("train" if "train" in task.splits else "test")
            found[task.name, there] = load_examples(task, there, source=source)
    for (task_name, there), examples in found.items():
        if row >= len(examples):
            raise UsageError(f"--row {row}: must be 0 to {len(examples) - 1} for {task_name}, {there}")
        yield show_example(examples[row], encoder, format=format, loss_on=loss_on)


def _by_task(examples: Iterable[Example], *, split: Split) -> dict[tuple[str, Split], list[Example]]:
    found: dict[tuple[str, Split], list[Example]] = {}
    for example in examples:
        found.setdefault((example.task, split), []).append(example)
    return found


def show_example(example: Example, encoder: Encoder, *, format: FormatName, loss_on: LossOn) -> str:
    """One row as plain text."""
    renderer = make_format(format, encoder.tokenizer)
    option = renderer.train(example)
    (encoded,) = encode_examples([example], renderer, encoder, loss_on=loss_on)
    with_loss = sum(label != IGNORE_INDEX for label in encoded.labels)
    cut = ", the start of the prompt cut" if encoded.truncated else ""
    lines = [
        f"{example.id}   format {format}, {len(encoded.input_ids)} tokens{cut}, loss on {with_loss} of them",
        "",
        "prompt (training)",
        *(f"  | {line}" for line in option.prompt.split("\n")),
        "answer",
        *(f"  | {line}" for line in option.answer.split("\n")),
        "",
        "position      id  label  token",
    ]
    for position, (id, label) in enumerate(zip(encoded.input_ids, encoded.labels, strict=True)):
        mark = "-" if label == IGNORE_INDEX else "loss"
        lines.append(f"{position:8d}  {id:6d}  {mark:>5}  {encoder.tokenizer.decode([id])!r}")
    if len(example.choices) < 2:  # a free row
        return "\n".join(lines)
    lines += ["", f"options (protocol {joined_names(readers(format))}; * is right)"]
    for index, choice in enumerate(renderer.options(example)):
        star = "*" if index == example.gold else " "
        lines.append(f"{star} {choice.label}: …{choice.prompt[-40:]!r} + {choice.answer!r}")
    return "\n".join(lines)
