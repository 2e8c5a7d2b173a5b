"""Tasks: sets of multiple-choice questions as entries, among them the eight commonsense sets.

A `Task` says where the rows are, how a row becomes an `Example`, and how the question is worded. The eight sets and a
user's own are the same kind of entry; only `commonsense` knows the eight.
"""

from .commonsense import COMMONSENSE, GROUP, TASKS, split_names, unknown_names
from .task import INSTRUCTION, Columns, Example, Hub, Questions, Task
from .wording import Numbered, TrueFalse

__all__ = [
    "COMMONSENSE",
    "GROUP",
    "INSTRUCTION",
    "TASKS",
    "Columns",
    "Example",
    "Hub",
    "Numbered",
    "Questions",
    "Task",
    "TrueFalse",
    "split_names",
    "unknown_names",
]
