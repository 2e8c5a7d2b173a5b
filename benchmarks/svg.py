"""Pictures of the documents, each an SVG file: without a background, in colours that can be read on a white page and on
a dark one."""

import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks import DOCS
from moslora.report.canvas import SERIES, VARIABLES, Canvas

INK = "#75808B"
"""Text and axes: of medium brightness."""

SHOWN = dict.fromkeys(VARIABLES.values(), INK) | {f"c{number}": color for number, color in enumerate(SERIES)}
"""The variables of a report's page, as colours."""


@contextmanager
def canvas_of(arms: Iterable[str]) -> Iterator[Canvas]:
    """A report's canvas, whose PNGs are not kept."""
    with tempfile.TemporaryDirectory() as folder:
        yield Canvas(Path(folder), list(arms))


def from_report(svg: str) -> str:
    """A figure of a report's page as a file of its own."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    text = re.sub(r"var\(--(\w+)\)", lambda found: SHOWN[found[1]], svg)
    text = text.replace("<svg", f"<svg {names}", 1)
    return text.replace(f"stroke: {SHOWN['grid']}; stroke-width: 0.8", f"stroke: {SHOWN['grid']}; stroke-opacity: 0.3")


def from_figures(style: Any, figures: Mapping[str, Callable[[], Figure]]) -> dict[str, str]:
    """What figures of matplotlib in this style are as SVG, the same text every day."""
    found = {}
    for path, draw in figures.items():
        text = io.StringIO()
        with plt.rc_context(style):
            figure = draw()
            with plt.rc_context({"svg.hashsalt": "moslora"}):  # fixed ids
                figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
        found[path] = text.getvalue()
    return found


def write_pictures(pictures: Mapping[str, str], folder: Path = DOCS) -> None:
    """Writes each SVG to its path in ``folder``."""
    for path, svg in pictures.items():
        file = folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(svg, encoding="utf-8")
        print(f"written: {file}")
