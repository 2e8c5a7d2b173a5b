"""Output of ``moslora data show``: an example as text, as tokens with the label mask, and its options."""

from collections.abc import Iterator, Sequence

from moslora.choices import BadRows, FormatName, LossOn, Split
from moslora.console import note_once
from moslora.data.encode import IGNORE_INDEX, Encoder, encode_examples
from moslora.data.sources import load_examples, load_training
from moslora.errors import UsageError
from moslora.prompts.formats import make_format
from moslora.prompts.instructions import labels
from moslora.prompts.protocols import joined_names, readers
from moslora.tasks import Conversation, Example, OpenEnded, Task
from moslora.tasks.matching import Number


def rows_to_show(
    tasks: Sequence[Task], *, source: str, whole: bool, split: Split | None, row: int, bad_rows: BadRows
) -> Iterator[Example]:
    """Find the row with number ``row`` of each task.

    Args:
        tasks: tasks to show.
        source: of their rows.
        whole: show every task among the source's training rows, also bare instructions.
        split: by default "train", or "test" for a task without training rows.
        row: from 0.
        bad_rows: as in `read_rows`.

    Raises:
        UsageError: a task has fewer rows.
    """
    examples_of: dict[tuple[str, Split], list[Example]] = {}
    if whole and split in (None, "train"):
        for example in load_training(tasks, source=source, bad_rows=bad_rows):
            examples_of.setdefault((example.task, "train"), []).append(example)
    else:
        for task in tasks:
            usual: Split = "train" if "train" in task.splits else "test"
            shown = split or usual
            examples_of[task.name, shown] = load_examples(task, shown, source=source)
    for (task_name, shown), examples in examples_of.items():
        if row >= len(examples):
            raise UsageError(f"--row {row}: must be 0 to {len(examples) - 1} for {task_name}, {shown}")
        yield examples[row]


def show_example(example: Example, encoder: Encoder, *, format: FormatName, loss_on: LossOn) -> str:
    """Write a row as plain text: prompt and answer, or turns; a line per token; and options or accepted answers."""
    renderer = make_format(format, encoder.tokenizer)
    for remark in renderer.remarks():
        note_once(remark)
    (encoded,) = encode_examples([example], renderer, encoder, loss_on=loss_on)
    with_loss = sum(label != IGNORE_INDEX for label in encoded.labels)
    cut = ", the start of the prompt cut" if encoded.truncated else ""
    if isinstance(example, Conversation):
        texts = {f"{number} {turn.role}": turn.content for number, turn in enumerate(example.turns, start=1)}
    else:
        option = renderer.train(example)
        texts = {"prompt (training)": option.prompt, "answer": option.answer}
    lines = [
        f"{example.id}   format {format}, {len(encoded.input_ids)} tokens{cut}, loss on {with_loss} of them",
        "",
    ]
    for title, text in texts.items():
        lines += [title, *(f"  | {line}" for line in text.split("\n"))]
    lines += ["", "position      id  label  token"]
    for position, (id, label) in enumerate(zip(encoded.input_ids, encoded.labels, strict=True)):
        mark = "-" if label == IGNORE_INDEX else "loss"
        lines.append(f"{position:8d}  {id:6d}  {mark:>5}  {encoder.tokenizer.decode([id])!r}")
    if isinstance(example.wording, OpenEnded):
        lines += ["", *_accepted(example, example.wording)]
    elif len(example.choices) > 1:  # no bare instruction
        lines += ["", f"options (protocol {joined_names(readers(format))}; * is right)"]
        names = labels(example)
        for index, choice in enumerate(renderer.options(example)):
            star = "*" if index == example.gold else " "
            lines.append(f"{star} {names[index]}: …{choice.prompt[-40:]!r} + {choice.answer!r}")
    return "\n".join(lines)


def _accepted(example: Example, words: OpenEnded) -> Iterator[str]:
    """Describe what ends a generated text, how the answer is read from it, and the accepted answers, normalised."""
    ends = ["the end-of-sequence token", *map(repr, words.stop)]
    yield f"answer in words: up to {words.max_new_tokens} tokens, ended by {' or '.join(ends)}"
    yield f"right (match: {words.match.kind}): {words.match.says}"
    for answer in example.choices:
        compared = Number().counts_as(answer) or words.match.counts_as(answer)  # a number by its value
        yield f"* {answer!r}, compared as {compared!r}"
