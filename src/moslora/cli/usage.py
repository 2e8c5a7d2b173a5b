"""Usage errors in one line each: what is wrong, where, and the fix. Typer itself prints four lines."""

import re
import shlex
from typing import Any

import typer

TyperUsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Base class of Typer's usage errors, whose package depends on Typer's version."""


def one_line(error: Any) -> str:
    """Write one of Typer's usage errors in one line."""
    context = error.ctx
    fault = str(error.format_message())
    if context is None:
        return fault
    command = context.command_path
    extra = re.match(r"Got unexpected extra argument\(?s?\)? \((.+)\)", error.message)
    options = [one for one in context.command.params if one.param_type_name == "option" and not one.is_flag]
    if extra and "=" in extra[1]:
        fault += "; this command takes no overrides, so set the value in the recipe's file"
    elif extra and options:  # the first option is the most usual one
        fault += f"; did you mean {options[0].opts[0]} {shlex.quote(extra[1])}?"
    if type(error).__name__ == "NoSuchOption":
        hint = _hint(error.option_name, context)
        if hint:
            fault = f"No such option: {error.option_name}; {hint}"
        elif any(parameter.name == "overrides" for parameter in context.command.params):
            fault += "; values of the recipe have no dashes: training.learning_rate=1e-4"
    return f"{command}: {fault} ({command} --help lists its options)"


def _hint(unknown: str, context: Any) -> str:
    """Say what an unknown option may stand for: an argument, the start of an option, or another command's option."""
    root = context.find_root().command
    for parameter in context.command.params:
        if parameter.param_type_name == "argument" and unknown == f"--{parameter.name}":
            return f"this argument has no dashes: {context.command_path} {parameter.name.upper()}"
        for option in parameter.opts:
            if option.startswith(unknown):
                return f"did you mean {option}?"
    owners = [name for name, command in root.commands.items() for one in command.params if unknown in one.opts]
    return f"it is an option of {', '.join(f'{root.name} {name}' for name in owners)}" if owners else ""
