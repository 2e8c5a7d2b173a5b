"""`Example`: the form of a question, whatever its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .wording import Numbered, TrueFalse

INSTRUCTION = "instruction"
"""Task name of a local row that belongs to no task: a bare instruction with its response."""


@dataclass(frozen=True)
class Example:
    """One multiple-choice question from any source.

    Attributes:
        id: ``<task>/<split>/<row>``; the row is the position in the source (HellaSwag's own ``ind`` repeats).
        task: name of its task, or `INSTRUCTION`.
        question: BoolQ question without "?", PIQA goal, SIQA question, HellaSwag context, WinoGrande
            sentence with "_", ARC and OpenBookQA question; the whole instruction of an instruction row.
        choices: the text of the options; ("true", "false") for BoolQ; whole responses for instruction rows.
        gold: position of the right choice.
        context: BoolQ passage, SIQA context or HellaSwag activity label, where the source has it as a field.
        meta: further fields of one source that one format reads (HellaSwag's ``ctx_a`` and ``ctx_b``).
        wording: of a task that is not among the eight, whose wording `moslora.tasks.TASKS` has.
    """

    id: str
    task: str
    question: str
    choices: tuple[str, ...]
    gold: int
    context: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    wording: Numbered | TrueFalse | None = None
