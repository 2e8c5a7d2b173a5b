"""Typer's usage errors, each as one line: what is wrong, where, and the fix. Typer itself prints four."""

from typing import Any

import typer

TyperUsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""The base of Typer's usage errors; which package has it depends on Typer's version."""


def one_line(error: Any) -> str:
    """The line for one of Typer's usage errors."""
    context = error.ctx
    said = str(error.format_message()).replace("Value error, ", "")  # pydantic's words
    if context is None:
        return said
    command = context.command_path
    takes_values = any(parameter.name == "overrides" for parameter in context.command.params)
    if takes_values and type(error).__name__ == "NoSuchOption":
        said += "; values of the recipe have no dashes: training.learning_rate=1e-4"
    return f"{command}: {said} ({command} --help shows what it takes)"
