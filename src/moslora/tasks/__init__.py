"""Tasks: sets of multiple-choice questions or of texts as entries, among them the eight commonsense sets.

A `Task` says where the rows are, how a row becomes an `Example`, and how the question is worded. The eight sets and a
user's own are the same kind of entry; only `commonsense` knows the eight.
"""

from .commonsense import BUILT_IN, COMMONSENSE, GROUP, PASSAGES, TASKS, split_names, unknown_names
from .task import INSTRUCTION, Columns, Example, Hub, Questions, Task
from .wording import Numbered, Plain, TrueFalse

__all__ = ["BUILT_IN", "COMMONSENSE", "GROUP", "INSTRUCTION", "PASSAGES", "TASKS"]
__all__ += ["Columns", "Example", "Hub", "Numbered", "Plain", "Questions", "Task", "TrueFalse"]
__all__ += ["split_names", "unknown_names"]
