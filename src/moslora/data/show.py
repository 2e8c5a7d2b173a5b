"""One example as text, as tokens with the label mask, and its options: the output of ``moslora data show``."""

from moslora.choices import FormatName, LossOn, Split
from moslora.data.encode import IGNORE_INDEX, Encoder, encode_examples
from moslora.data.sources import load_examples
from moslora.errors import UsageError
from moslora.prompts.formats import make_format
from moslora.recipe import PROTOCOLS
from moslora.tasks import Task


def show_example(
    task: Task, encoder: Encoder, *, split: Split, row: int, format: FormatName, source: str, loss_on: LossOn
) -> str:
    """One row of a set as plain text."""
    examples = load_examples(task, split, source=source)
    if row >= len(examples):
        raise UsageError(f"--row {row}: must be 0 to {len(examples) - 1} for {task.name}, {split}")
    example = examples[row]
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
    lines += ["", f"options (protocol {' or '.join(PROTOCOLS[format])}; * is right)"]
    for index, choice in enumerate(renderer.options(example)):
        star = "*" if index == example.gold else " "
        lines.append(f"{star} {choice.label}: …{choice.prompt[-40:]!r} + {choice.answer!r}")
    return "\n".join(lines)
