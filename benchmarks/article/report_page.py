"""The picture of a report in docs/comparing.md: the beginning of the page of `moslora report` about two methods.

The page itself, as XHTML within an SVG: its texts are texts, and its colours follow the reader's light or dark scheme.
"""

import re
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks import DOCS
from moslora.report import write_report

RUNS = ("lora-0.002-0", "moslora-0.004-0")
"""Of docs/experiments/article."""

WIDTH = 1160
HEIGHT = 1130
"""Pixels that the beginning takes."""


def pictures() -> dict[str, str]:
    """Path in docs/ -> SVG."""
    runs = [DOCS / "experiments" / "article" / "runs" / name for name in RUNS]
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(runs, out=Path(folder) / "report")
        text = page.read_text(encoding="utf-8")
    return {"report.svg": beginning(text)}


def beginning(page: str) -> str:
    """The page up to the first comparison, as an SVG.

    Raises:
        ParseError: what was cut out is no XML.
    """
    style = page.partition("<style>")[2].partition("@media (max-width")[0]  # no layout for phones: the size is fixed
    style = re.sub(r"^svg\b", "main svg", style, flags=re.M)  # not the picture itself
    main = page.partition("<main>")[2].partition("<h3>")[0]
    svg = f"""\
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{WIDTH}" height="{HEIGHT}"
  viewBox="0 0 {WIDTH} {HEIGHT}">
<style>
{style.strip()}
</style>
<foreignObject width="100%" height="100%">
<body xmlns="http://www.w3.org/1999/xhtml" style="height: {HEIGHT}px; overflow: hidden">
<main>
{main.strip()}
</section>
</main>
</body>
</foreignObject>
</svg>
"""
    svg = svg.replace("<svg role=", '<svg xmlns="http://www.w3.org/2000/svg" role=')
    ElementTree.fromstring(svg)
    return svg
