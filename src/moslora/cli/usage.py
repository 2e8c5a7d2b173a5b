"""Typer's usage errors, each as one line: what is wrong, where, and the fix. Typer itself prints four, the fix last."""

import difflib
import re
import shlex
import sys
from collections.abc import Iterable
from typing import Any

import typer

from moslora.choices import FORMER_NAMES

TyperUsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""The base of Typer's usage errors; which package has it depends on Typer's version."""

SAID = (
    (r"(?:Value error, )?.* is not one of (?P<among>.*?)\.?", ""),
    (r"Input should be a valid integer.*|.* is not a valid integer.*", "must be a whole number"),
    (r"Input should be a valid number.*|.* is not a valid float.*", "must be a number"),
    (r"Input should be greater than or equal to (?P<least>\S+)", "must be at least {least}"),
    (r"(?:dir|Directory) (?P<path>'.*') is a file\.?", "{path} is a file; must be a folder"),
)
"""What Typer says of a value (pydantic's words, or click's), and our words."""


def one_line(error: Any) -> str:
    """The line for one of Typer's usage errors."""
    command = _command(error.ctx)
    match type(error).__name__:
        case "NoSuchOption":
            fix = fix_of_option(error.option_name, error.ctx) or f"{command} --help lists them"
            return f"{error.option_name}: no such option of {command}; {fix}"
        case "MissingParameter":
            return f"{command}: {_name(error.param)} is missing: {_described(error.param)}"
        case "BadParameter":
            return _of_a_value(error)
        case "BadOptionUsage":
            if "does not take" in error.message:
                return f"{error.option_name}: takes no value; write it alone"
            return f"{error.option_name}: its value is missing"
    unknown = re.match(r"No such command ['\"](.+?)['\"]", error.message)
    if unknown:
        return _no_command(unknown[1], error.ctx)
    extra = re.match(r"Got unexpected extra argument\(?s?\)? \((.+)\)", error.message)
    if extra:
        fault = f"{command}: unexpected argument {extra[1]}"
        takers = [one for one in error.ctx.command.params if one.param_type_name == "option" and not one.is_flag]
        if takers:  # the first is what a command is mostly told
            fault += f"; did you mean {_name(takers[0])} {shlex.quote(extra[1])}?"
        return f"{fault} ({command} --help shows what it takes)"
    return f"{command}: {error.format_message()}"


def fix_of_option(typed: str, context: Any) -> str:
    """What to type instead of ``typed``, which is no option of the command; empty if nothing is close to it."""
    typed = typed.partition("=")[0]
    root = context.find_root().command
    for parameter in context.command.params:
        if parameter.param_type_name == "argument" and typed == f"--{parameter.name}":
            return f"it is an argument: {context.command_path} {_name(parameter)}"
    long = [name for name in _options(context.command) if name.startswith("--")]
    near = [name for name in long if name.startswith(typed)] or [_nearest(typed, long)]
    others = [f"{root.name} {name}" for name, command in root.commands.items() if typed in _options(command)]
    if others:
        return f"it is one of {', '.join(others)}"
    if near[0]:
        return f"did you mean {near[0]}?"
    return ""


def _options(command: Any) -> list[str]:
    """The names of the options of a command."""
    return [name for parameter in command.params for name in parameter.opts]


def _nearest(typed: str, names: Iterable[str]) -> str:
    """The name that ``typed`` is closest to; empty if none is close."""
    close = difflib.get_close_matches(typed, list(names), n=1)
    return close[0] if close else ""


def _command(context: typer.Context | None) -> str:
    """The command as it was typed, without its options."""
    return context.command_path if context else "moslora"


def _no_command(typed: str, context: Any) -> str:
    command = _command(context)
    near = _nearest(typed, context.command.commands)
    if near:
        return f"{typed}: no such command; did you mean {command} {near}?"
    return f"{typed}: no such command; {command} --help lists all"


def _name(parameter: Any) -> str:
    """The name of an option as it is typed, or of an argument as the usage shows it."""
    longest = str(max(parameter.opts, key=len))
    if longest.startswith("-"):
        return longest
    return parameter.metavar or longest


def _described(parameter: Any) -> str:
    """The first words of a parameter's help, as a part of a sentence."""
    text = re.split(r"[;.] |\.$", parameter.help or "described by --help")[0]
    return text[0].lower() + text[1:]


def _of_a_value(error: Any) -> str:
    """The line for a value that its option or argument does not take."""
    value = _typed(error.param.opts, sys.argv[1:])
    where = f"{_name(error.param)} {value}".rstrip()
    for pattern, words in SAID:
        found = re.fullmatch(pattern, error.message)
        if not found:
            continue
        parts = found.groupdict()
        if "among" in parts:
            return f"{where}: {_one_of(parts['among'], value)}"
        return f"{where}: {words.format(**parts)}"
    return f"{where}: {error.message}"


def _one_of(quoted: str, value: str) -> str:
    """What a value must be, of names in quotes."""
    names = re.findall(r"['\"](.+?)['\"]", quoted)
    said = f"must be one of {', '.join(names)}"
    near = FORMER_NAMES.get(value) or _nearest(value, names)
    if near in names:
        said += f"; did you mean {near}?"
    return said


def _typed(names: Iterable[str], words: list[str]) -> str:
    """The value that is typed behind an option of one of these names, the last one if there are several."""
    value = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, joined = word.partition("=")
        if name in names:
            value = joined if equals else following
    return value
