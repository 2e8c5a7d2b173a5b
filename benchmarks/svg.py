"""Pictures of the documents, each an SVG file: without a background, in colours that can be read on a white page and on
a dark one."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks import DOCS
from moslora.report.canvas import SERIES, VARIABLES

INK = "#75808B"
"""Text and axes: of medium brightness."""

SHOWN = dict.fromkeys(VARIABLES.values(), INK) | {f"c{number}": color for number, color in enumerate(SERIES)}
"""The variables of a report's page, as colours."""


def from_report(svg: str) -> str:
    """A figure of a report's page as a file of its own."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    text = re.sub(r"var\(--(\w+)\)", lambda found: SHOWN[found[1]], svg)
    text = text.replace("<svg", f"<svg {names}", 1)
    return text.replace(f"stroke: {SHOWN['grid']}; stroke-width: 0.8", f"stroke: {SHOWN['grid']}; stroke-opacity: 0.3")


def from_figure(figure: Figure) -> str:
    """A figure of matplotlib, the same text every day."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "moslora"}):  # fixed ids
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def write_pictures(pictures: Mapping[str, str], folder: Path = DOCS) -> None:
    """Writes each SVG to its path in ``folder``."""
    for path, svg in pictures.items():
        file = folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(svg, encoding="utf-8")
        print(f"written: {file}")
