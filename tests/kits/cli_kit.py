"""One command, run in this process."""

import sys

import pytest

from moslora.cli import main
from moslora.console import note_once


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of one command, in this process."""
    note_once.cache_clear()  # as in a process of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["moslora", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err
