"""The pictures of the documents: each is made by a command, is shown, and says what the code draws today."""

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.pictures import SOURCES
from benchmarks.research import proof
from benchmarks.research.comparisons import comparisons
from benchmarks.research.trajectories import STEPS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def shown() -> set[Path]:
    """The pictures that pages show."""
    found = set()
    for page in PAGES:
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            found.add((page.parent / link).resolve())
    return found


def texts(svg: str) -> list[str]:
    """What a picture says: its elements' texts, and the comments in which matplotlib keeps those drawn as outlines."""
    without_style = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
    found = [text.strip() for text in ElementTree.fromstring(without_style).itertext()]
    found += [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", without_style)]
    return [text for text in found if text]


def names(svg: str) -> list[str]:
    """Its texts that are no numbers."""
    return [text for text in texts(svg) if re.search(r"[A-Za-z]{2}", text)]


def test_every_picture_is_shown_and_none_is_missing():
    files = {path for path in DOCS.rglob("*.*") if path.suffix in (".svg", ".png", ".jpg", ".gif")}
    assert files == shown()


@pytest.mark.parametrize("source", SOURCES)
def test_a_picture_says_what_the_code_draws(monkeypatch, source):
    """Words and numbers; of the proof's, whose smallest numbers are roundings of the processor, the words: the numbers
    are test_proof's."""
    read = names if source == "proof" else texts
    measured = {rule.name: dict.fromkeys(comparisons(), torch.ones(STEPS)) for rule in proof.RULES}
    monkeypatch.setattr(proof, "measure", lambda: measured)
    made = SOURCES[source]()
    for path, svg in made.items():
        drawn = read(svg)
        assert len(drawn) > 2 and read((DOCS / path).read_text(encoding="utf-8")) == drawn, path
    for folder in {(DOCS / path).parent for path in made} - {DOCS}:
        files = {file.relative_to(DOCS).as_posix() for file in folder.glob("*.svg")}
        assert files == set(made), folder
