"""The texts of ``--help``: whole lines, and examples that work."""

import re
import shlex
from typing import Any

import pytest
import typer.main

from cli_kit import run
from moslora.cli import app

WITH_EXAMPLES = [
    "train",
    "plan",
    "check",
    "eval",
    "ask",
    "predict",
    "merge",
    "strength",
    "export",
    "import",
    "verify",
    "quickstart",
    "experiment",
    "compare",
    "report",
    "reproduce",
]


def lines_below(title: str, command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a command's help says below this title, in lines of at most 80 characters."""
    code, said, _ = run(capsys, *command.split(), "--help")
    _, _, below = said.partition(f"{title}\n")
    lines = below.splitlines()
    assert code == 0 and lines and max(map(len, lines)) <= 80
    return lines


@pytest.mark.parametrize("group", ["", "recipes", "data"])
def test_no_line_of_the_list_of_commands_is_cut(group, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = lines_below("Commands:", group, capsys)
    assert len(lines) > 2 and "..." not in "\n".join(lines)


@pytest.mark.parametrize("name", [*WITH_EXAMPLES, "data show"])
def test_the_examples_of_a_command_are_commands(name, capsys, monkeypatch):
    """Each is a line that can be pasted: its options and their values are known, and it is of this command."""
    monkeypatch.setenv("COLUMNS", "80")
    for line in lines_below("Examples:", name, capsys):
        assert re.match(rf" *moslora {name}\b", line), line
        command: Any = typer.main.get_command(app)
        words = shlex.split(line, comments=True)[1:]
        for part in name.split():
            command = command.commands[part]
            words.remove(part)
        assert command.make_context(name, words).params
