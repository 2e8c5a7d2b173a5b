"""What a page shows of a command's output is what comes out.

A block below `<!-- printed by: COMMAND -->` has lines of what that command prints here, in their order. A line of `…`
stands for lines that are left out.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from cli_kit import run as run_command
from moslora.convert.proof import Proof

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^<!-- printed by: (?P<command>.*?) -->\n+```\n(?P<text>.*?)\n```$", re.M | re.S)
LEFT_OUT = "…"


class Shown(NamedTuple):
    page: str
    command: str
    lines: list[str]


def shown_blocks() -> list[Shown]:
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        for match in BLOCK.finditer(path.read_text(encoding="utf-8")):
            found.append(Shown(path.name, match["command"], match["text"].splitlines()))
    return found


SHOWN = shown_blocks()


def test_every_block_that_names_its_command_is_compared():
    """One that has another form would be passed over."""
    pages = [ROOT / "README.md", *ROOT.glob("recipes/*.md"), *ROOT.glob("docs/*.md")]
    named = sum(page.read_text(encoding="utf-8").count("<!-- printed by:") for page in pages)
    assert len(SHOWN) == named > 0


def assert_in_order(lines: list[str], printed: str) -> None:
    """Each line, but those left out, is one of the printed ones, after the line before it."""
    output = [line.rstrip() for line in printed.splitlines()]
    position = 0
    for line in lines:
        if line == LEFT_OUT:
            continue
        assert line in output[position:], f"not printed, or not in this order: {line!r}\n{printed}"
        position = output.index(line, position) + 1


@pytest.mark.parametrize("shown", SHOWN, ids=[f"{shown.page}: {shown.command}" for shown in SHOWN])
def test_a_command_prints_what_its_page_shows(shown, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = run_command(capsys, *shlex.split(shown.command)[1:])
    assert code == 0, err
    assert_in_order(shown.lines, out)


def block_of(page: str, first_line: str) -> list[str]:
    """The lines of the page's block that begins with these words."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```\n({re.escape(first_line)}.*?)\n```$", text, re.M | re.S)
    return block.splitlines()


def test_the_page_on_merging_shows_the_words_of_a_proof():
    proof = Proof(mean_error=0.058, rounding=0.058, effect=1.8, dtype="bfloat16", quantization=None, onto="original")
    assert block_of("merging.md", "merged against") == str(proof).splitlines()
