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
    "eval",
    "ask",
    "merge",
    "export",
    "import",
    "verify",
    "quickstart",
    "experiment",
    "compare",
    "report",
    "reproduce",
]


@pytest.mark.parametrize("group", ["", "recipes", "data"])
def test_no_line_of_the_list_of_commands_is_cut(
    group: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, said, _ = run(capsys, *group.split(), "--help")
    _, _, listed = said.partition("Commands:\n")
    assert code == 0 and len(listed.splitlines()) > 2
    assert "..." not in listed and max(map(len, listed.splitlines())) <= 80


@pytest.mark.parametrize("name", [*WITH_EXAMPLES, "data show"])
def test_the_examples_of_a_command_are_commands(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a line that can be pasted: its options and their values are known, and it is of this command."""
    monkeypatch.setenv("COLUMNS", "80")
    code, said, _ = run(capsys, *name.split(), "--help")
    _, _, shown = said.partition("Examples:\n")
    lines = [line.strip() for line in shown.splitlines()]
    assert code == 0 and lines and max(map(len, shown.splitlines())) <= 80
    for line in lines:
        assert re.match(rf"moslora {name}\b", line), line
        command: Any = typer.main.get_command(app)
        words = shlex.split(line, comments=True)[1:]
        for part in name.split():
            command = command.commands[part]
            words.remove(part)
        assert command.make_context(name, words).params
