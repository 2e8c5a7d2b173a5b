"""Typer's usage errors, each as one line: what is wrong, where, and the fix. Typer itself prints four."""

import re
import shlex
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
    extra = re.match(r"Got unexpected extra argument\(?s?\)? \((.+)\)", error.message)
    options = [one for one in context.command.params if one.param_type_name == "option" and not one.is_flag]
    if extra and "=" in extra[1]:
        said += "; values are typed for train and plan, here they are in the recipe's file"
    elif extra and options:  # the first is what a command is mostly told
        said += f"; did you mean {options[0].opts[0]} {shlex.quote(extra[1])}?"
    if type(error).__name__ == "NoSuchOption":
        place = _place(error.option_name, context)
        if place:
            said = f"No such option: {error.option_name}; {place}"
        elif any(parameter.name == "overrides" for parameter in context.command.params):
            said += "; values of the recipe have no dashes: training.learning_rate=1e-4"
    return f"{command}: {said} ({command} --help shows what it takes)"


def _place(typed: str, context: Any) -> str:
    """Where a word belongs that is no option of the command: an argument, the rest of a name, or another command."""
    root = context.find_root().command
    for parameter in context.command.params:
        if parameter.param_type_name == "argument" and typed == f"--{parameter.name}":
            return f"it is typed without a name: {context.command_path} {parameter.name.upper()}"
        for option in parameter.opts:
            if option.startswith(typed):
                return f"did you mean {option}?"
    of = [name for name, one in root.commands.items() for parameter in one.params if typed in parameter.opts]
    if of:
        return f"it is an option of {', '.join(f'{root.name} {name}' for name in of)}"
    word = re.compile(rf"\b{re.escape(typed.strip('-'))}\b", re.IGNORECASE)
    meant = [one for one in context.command.params if word.search(getattr(one, "help", None) or "")]
    return f"did you mean {meant[0].opts[0]}? {meant[0].help}" if meant else ""
