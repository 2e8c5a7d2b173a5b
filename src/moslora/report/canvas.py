"""Canvas of the figures: their style, and how they are saved as PNG and as SVG with the page's colours."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

INK = "#1f2937"
MUTED = "#6b7280"
GRID = "#e5e7eb"
SERIES = ("#2563eb", "#ea580c", "#0d9488", "#9333ea", "#ca8a04", "#db2777", "#65a30d", "#0891b2")
MARKERS = "osD^vP*X<>hp"
LINES = ("-", "--", ":")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {color: f"c{i}" for i, color in enumerate(SERIES)}
"""Colour -> variable of the page that holds it, which has another value in dark mode."""

NO_METADATA: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))

STYLE: Any = {
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "moslora",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "figure.constrained_layout.use": True,
}


BLUE = to_rgb(SERIES[0])
ORANGE = to_rgb(SERIES[1])
DIVERGING = LinearSegmentedColormap.from_list("faded", [(*BLUE, 1), (*BLUE, 0), (*ORANGE, 0), (*ORANGE, 1)])
"""From blue to orange; zero is transparent, so that it has the colour of the page."""


class Style(NamedTuple):
    """Colour, marker and line style of an arm."""

    color: str
    marker: str
    line: str


@dataclass(frozen=True)
class Canvas:
    """Maker of figures.

    Attributes:
        folder: folder of the PNGs.
        arms: arms of all figures, whose places choose their styles.
    """

    folder: Path
    arms: Sequence[str]

    @contextmanager
    def figure(self, width: float, height: float, *, columns: int = 1, rows: int = 1) -> Iterator[tuple[Figure, Any]]:
        """Yield a figure of this size in inches, and its axes: one, or an array of shape ``(rows, columns)``."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(width, height))
            yield figure, figure.subplots(rows, columns, squeeze=rows * columns == 1)

    def style(self, arm: str) -> Style:
        """Return the style of an arm, the same in every figure. Colours alone are too few for twelve arms."""
        place = self.arms.index(arm)
        return Style(
            SERIES[place % len(SERIES)],
            MARKERS[place % len(MARKERS)],
            LINES[place // len(SERIES) % len(LINES)],
        )

    def keep(self, name: str, figure: Figure) -> Markup:
        """Write ``FOLDER/NAME.png`` and return the SVG for the page."""
        text = io.StringIO()
        with matplotlib.rc_context(STYLE):
            figure.draw_without_rendering()  # the first layout places the labels, by which they are wrapped
            figure.savefig(self.folder / f"{name}.png", dpi=160, facecolor="white")
            figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
        _, _, svg = text.getvalue().partition("<svg")
        svg = re.sub(r"(?<=<g) id=\"[A-Za-z0-9]+_\d+\"", "", svg)
        svg = re.sub(r'.*?(viewBox=".*?").*?>', r'<svg role="img" \1>', svg, count=1, flags=re.S)
        for value, variable in VARIABLES.items():
            svg = svg.replace(value, f"var(--{variable})")
        return Markup(svg)
