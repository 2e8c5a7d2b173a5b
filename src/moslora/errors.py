"""The two ways in which a command may end badly without a traceback.

A message is one clear line: what is wrong, where, and the mend. Several faults found together are
several lines of one error, so that a user repairs them in one go.
"""


class MosloraError(Exception):
    """A failure with a message meant for the person at the terminal. Exit code 1."""

    exit_code = 1


class UsageError(MosloraError):
    """A wrong use: the recipe, an option or a path has to change before a retry. Exit code 2."""

    exit_code = 2
