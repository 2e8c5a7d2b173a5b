"""What a page shows of a command's output is what comes out.

A block below `<!-- printed by: COMMAND -->` has lines of what that command prints here, in their order. A line of `…`
stands for lines that are left out.
"""

import re
import shlex
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pytest

from cli_kit import run as run_command
from moslora.compare.tables import read_tables
from moslora.convert.proof import Proof

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^<!-- printed by: (?P<command>.*?) -->\n+```\n(?P<text>.*?)\n```$", re.M | re.S)
LEFT_OUT = "…"


class Shown(NamedTuple):
    page: str
    command: str
    lines: list[str]


def shown_blocks():
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


def assert_in_order(lines, printed):
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


def block_of(page, first_line):
    """The lines of the page's block that begins with these words."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```\n({re.escape(first_line)}.*?)\n```$", text, re.M | re.S)
    return block.splitlines()


def test_the_table_of_the_page_on_evaluation_has_the_numbers_of_the_committed_run():
    """`lora`, seed 0, in docs/experiments/article, as far as its table has them."""
    runs = read_tables(ROOT / "docs" / "experiments" / "article")
    run = next(one for one in runs if (one.arm, one.seed, one.role) == ("lora", 0, "scored"))
    assert run.evaluation is not None
    rows = [re.split(r"  +", line) for line in block_of("evaluation.md", "protocol cloze")[2:7]]
    for task, n, majority, _, per_character, _, log_p, _, nats in rows:
        if task == "macro average":
            continue
        answers = run.evaluation.tasks[task]
        means = {name: fmean(column) for name, column in answers.outcomes.items()}
        if task == "passages":
            assert (n, nats) == (str(len(answers.ids)), f"{means['nats_per_byte']:.4f}")
            continue
        ((_, most),) = Counter(answers.gold).most_common(1)
        assert (n, majority) == (str(len(answers.ids)), f"{100 * most / len(answers.ids):.1f}")
        assert (per_character, log_p) == (f"{100 * means['accuracy']:.1f}", f"{means['log_probability']:.3f}")


def test_the_page_on_merging_shows_the_words_of_a_proof():
    proof = Proof(mean_error=0.058, rounding=0.058, effect=1.8, dtype="bfloat16", quantization=None, onto="original")
    assert block_of("merging.md", "merged against") == str(proof).splitlines()
