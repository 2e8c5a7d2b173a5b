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
    if context is None:
        return str(error.format_message())
    command = context.command_path
    fault = f"{command}: {error.format_message().replace('Value error, ', '')}"  # pydantic's words
    if type(error).__name__ == "NoSuchOption":
        return f"{error.option_name}: no such option of {command}; {_fix(error)}"
    extra = re.match(r"Got unexpected extra argument\(?s?\)? \((.+)\)", error.message)
    takers = [option for option in _options(context.command) if not option.is_flag]
    if extra and "=" in extra[1]:
        fault += "; values are typed for train and plan, here they are in the recipe's file"
    elif extra and takers:  # the first is what a command is mostly told
        fault += f"; did you mean {takers[0].opts[0]} {shlex.quote(extra[1])}?"
    return f"{fault} ({command} --help shows what it takes)"


def _fix(error: Any) -> str:
    """What to type instead of an option that the command does not have."""
    typed = error.option_name
    command = error.ctx.command
    root = error.ctx.find_root().command
    names = [name for option in _options(command) for name in option.opts]
    close = [name for name in error.possibilities or () if name in names]  # not --help, which is close to any
    near = [name for name in names if name.startswith(typed)] or close
    others = []
    for name, other in root.commands.items():
        if any(typed in option.opts for option in _options(other)):
            others.append(f"{root.name} {name}")
    arguments = [parameter.name for parameter in command.params if parameter.param_type_name == "argument"]
    if typed.lstrip("-") in arguments:
        return "it is an argument, which is typed without a name"
    if others:
        return f"it is one of {', '.join(others)}"
    fixes = []
    if "overrides" in arguments:
        fixes.append("values of the recipe have no dashes: training.learning_rate=1e-4")
    fixes += [f"did you mean {name}?" for name in near[:1]]
    return "; ".join(fixes) or f"{error.ctx.command_path} --help lists them"


def _options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]
