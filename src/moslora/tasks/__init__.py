"""Tasks: sets of multiple-choice questions, of open-ended questions or of texts, among them the eight commonsense sets.

A `Task` says where the rows are, how a row becomes an `Example`, and how the question is worded. The eight sets and a
user's own are the same kind of entry; only `commonsense` knows the eight.
"""

from .commonsense import (
    BUILT_IN,
    COMMONSENSE,
    FOR_OPTIONS,
    FOR_TRUTHS,
    GROUP,
    PASSAGES,
    PASSAGES_OF,
    SAME_INSTRUCTION,
    TASKS,
    canonical_task,
    split_names,
    unknown_names,
)
from .task import (
    INSTRUCTION,
    UNKNOWN,
    UNKNOWN_ANSWER,
    Columns,
    Conversation,
    Example,
    Hub,
    QuestionSource,
    Task,
    Turn,
)
from .wording import RESPONSE_LEAD, Bare, Numbered, OpenEnded, Option, Plain, TrueFalse, Wording

__all__ = ["BUILT_IN", "COMMONSENSE", "FOR_OPTIONS", "FOR_TRUTHS", "GROUP", "INSTRUCTION", "PASSAGES", "PASSAGES_OF"]
__all__ += ["SAME_INSTRUCTION", "TASKS", "UNKNOWN", "UNKNOWN_ANSWER"]
__all__ += [
    "Columns",
    "Conversation",
    "Example",
    "Hub",
    "Numbered",
    "OpenEnded",
    "Option",
    "Plain",
    "QuestionSource",
    "Task",
]
__all__ += ["RESPONSE_LEAD", "Bare", "TrueFalse", "Turn", "Wording", "canonical_task", "split_names", "unknown_names"]
