"""The pictures of docs/argument.md: an adapter as strands between A and B, drawn from the numbers of M.

Left to right: x, A, the r numbers h = A x, the r numbers u = M h, B, y. The line from hᵢ to uⱼ is Mⱼᵢ, and the square
in row j, column i of the picture of M is the same number: the larger, the further from zero. No background and inks of
medium brightness, to be read on a white page and on a dark one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

from benchmarks.svg import INK

# Colours, the same in every picture.
A = "#2E7CC4"
M = "#C2539B"
B = "#16916F"
GATE = "#B97A08"
NEGATIVE = "#7B8794"  # entries of M below zero

STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
}

# Columns of a flow, in inches from its left.
X = 0.3
A_LEFT = 1.05
A_RIGHT = 1.8
B_LEFT = 3.3
B_RIGHT = 4.05
Y = 4.8

TALL = 2.2
"""Height of x and y."""

SHORT = 1.7
"""Height of A's blocks together, and of B's."""

BAR = 0.16
"""Width of the bars x and y."""

SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
"""The corners of a square around its centre."""


@dataclass(frozen=True)
class Block:
    """A part of A or B: its name, its shape, and which part of x or y it is joined to (low, high, between 0 and 1)."""

    name: str
    shape: str
    joined: tuple[float, float] = (0.0, 1.0)


class Side(NamedTuple):
    """Where a flow has the blocks of A or B: from ``left`` on, with ``edge`` towards ``bar``, the edge of x or y."""

    colour: str
    left: float
    edge: float
    bar: float


SIDE_A = Side(A, left=A_LEFT, edge=A_LEFT, bar=X + BAR / 2)
SIDE_B = Side(B, left=B_LEFT, edge=B_RIGHT, bar=Y - BAR / 2)


class Shown(NamedTuple):
    """A picture of a matrix; ``colour`` is that of its entries above zero."""

    matrix: Tensor
    title: str
    caption: str
    colour: str = M


def blocks(name: str, shape: str, count: int) -> list[Block]:
    """``count`` blocks of one shape, each joined to all of x or y."""
    subscripts = [""] if count == 1 else "₁₂₃₄"[:count]
    return [Block(f"{name}{subscript}", shape) for subscript in subscripts]


def colour_of(value: float, positive: str) -> str:
    """The colour of an entry of a matrix, ``positive`` if it is above zero."""
    return positive if value > 0 else NEGATIVE


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose data are inches from its lower left corner."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def heights(count: int, total: float, middle: float) -> list[tuple[float, float]]:
    """``count`` equal parts with gaps between them, from the top down: (low, high)."""
    gap = 0.12
    one = (total - gap * (count - 1)) / count
    tops = [middle + total / 2 - place * (one + gap) for place in range(count)]
    return [(top - one, top) for top in tops]


def nodes(count: int, rank: int, middle: float) -> list[float]:
    """Where each of the r numbers leaves A or enters B, from the top down."""
    places = []
    for low, high in heights(count, SHORT, middle):
        step = (high - low) / (rank // count)
        places += [high - step * (place + 0.5) for place in range(rank // count)]
    return places


def box(
    axes: Axes, corner: tuple[float, float], width: float, height: float, colour: str, text: str, small: str = ""
) -> None:
    """A filled rectangle with a text, and with a small one below it."""
    rounded = "round,pad=0,rounding_size=0.05"
    shape = FancyBboxPatch(corner, width, height, boxstyle=rounded, facecolor=colour, edgecolor="none")
    shape.set_zorder(2.5)  # over lines, under text
    axes.add_patch(shape)
    x = corner[0] + width / 2
    y = corner[1] + height / 2
    lift = 0.09 if small else 0.0
    centred: Any = {"color": "white", "ha": "center", "va": "center"}
    axes.text(x, y + lift, text, weight="bold", size=11, **centred)
    axes.text(x, y - lift, small, size=8, **centred)


def strands(axes: Axes, m: Tensor, *, parts: tuple[int, int], middle: float) -> None:
    """One line for each entry of M that is not zero, thicker and darker the larger it is."""
    starts = nodes(parts[0], m.shape[1], middle)
    ends = nodes(parts[1], m.shape[0], middle)
    largest = m.abs().max().item()
    entries = [(j, i, m[j, i].item()) for j, i in m.nonzero().tolist()]
    entries.sort(key=lambda entry: abs(entry[2]) / largest)  # the largest on top
    strength = 0.7 if len(entries) > 3 * len(ends) else 1.0  # a crowd
    axes.add_collection(
        LineCollection(
            [[(A_RIGHT, starts[i]), (B_LEFT, ends[j])] for j, i, _ in entries],
            colors=[colour_of(value, M) for *_, value in entries],
            linewidths=[strength * (0.4 + 1.5 * (abs(value) / largest)) for *_, value in entries],
            alpha=[strength * (0.3 + 0.7 * (abs(value) / largest)) for *_, value in entries],
        )
    )


def flow(
    axes: Axes,
    m: Tensor,
    a: Sequence[Block],
    b: Sequence[Block],
    *,
    middle: float,
    sizes: tuple[str, str] = ("d$_{in}$", "d$_{out}$"),
    between: str = "M",
) -> None:
    """x → A → M → B → y at the left edge, around the height ``middle``."""
    low = middle - TALL / 2
    high = middle + TALL / 2
    for place, name, size in zip((X, Y), "xy", sizes, strict=True):
        axes.add_patch(Rectangle((place - BAR / 2, low), BAR, TALL, facecolor=INK, edgecolor="none"))
        axes.text(place, high + 0.24, name, ha="center", va="bottom", weight="bold", size=11)
        axes.text(place, high + 0.08, size, ha="center", va="bottom", size=8)
    draw_blocks(axes, a, SIDE_A, middle=middle)
    draw_blocks(axes, b, SIDE_B, middle=middle)
    strands(axes, m, parts=(len(a), len(b)), middle=middle)
    axes.text((A_RIGHT + B_LEFT) / 2, middle + SHORT / 2 + 0.1, between, color=M, ha="center", weight="bold", size=11)


def draw_blocks(axes: Axes, parts: Sequence[Block], side: Side, *, middle: float) -> None:
    """The blocks of A or B, and what each is joined to: what it reads of x, or adds to y."""
    low = middle - TALL / 2
    for part, (bottom, top) in zip(parts, heights(len(parts), SHORT, middle), strict=True):
        begin, end = (low + share * TALL for share in part.joined)
        corners = [(side.bar, begin), (side.bar, end), (side.edge, top), (side.edge, bottom)]
        axes.add_collection(PolyCollection([corners], facecolor=side.colour, alpha=0.2, edgecolor="none"))
        box(axes, (side.left, bottom), A_RIGHT - A_LEFT, top - bottom, side.colour, part.name, part.shape)


def picture(axes: Axes, shown: Shown, *, left: float, low: float, size: float) -> None:
    """A matrix as squares whose area is the entry's distance from zero, over a faint grid."""
    rows, columns = shown.matrix.shape
    cell = size / max(rows, columns)
    width = cell * columns
    top = low + size / 2 + cell * rows / 2
    bottom = top - cell * rows
    lines = [[(left + i * cell, bottom), (left + i * cell, top)] for i in range(columns + 1)]
    lines += [[(left, top - j * cell), (left + width, top - j * cell)] for j in range(rows + 1)]
    axes.add_collection(LineCollection(lines, colors=INK, linewidths=0.4, alpha=0.35))
    m = shown.matrix.numpy()
    j, i = m.nonzero()
    centres = np.stack([left + (i + 0.5) * cell, top - (j + 0.5) * cell], axis=1)
    halves = 0.46 * cell * (abs(m[j, i]) / abs(m).max()) ** 0.5
    corners = centres[:, None] + halves[:, None, None] * SQUARE
    colours = [colour_of(value, shown.colour) for value in m[j, i]]
    axes.add_collection(PolyCollection(corners.round(3), facecolors=colours, edgecolors="none"))
    axes.text(left + width / 2, top + 0.08, shown.title, ha="center", va="bottom", weight="bold", size=10)
    axes.text(left + width / 2, bottom - 0.09, shown.caption, ha="center", va="top", size=8.5, linespacing=1.35)


def below(axes: Axes, text: str, colour: str, *, to: float, width: float, middle: float) -> None:
    """A box under a flow that begins at the left edge, with a line from x."""
    bottom = middle - TALL / 2
    low = bottom - 0.6
    left = to - width / 2
    height = 0.34
    box(axes, (left, low), width, height, colour, text)
    half_up = low + height / 2
    axes.plot([X, X, left], [bottom, half_up, half_up], color=colour, linewidth=1.3)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def gate(axes: Axes, text: str, *, to: float, middle: float) -> None:
    """A gate that reads x and weighs the strands above it."""
    below(axes, text, GATE, to=to, width=0.68, middle=middle)
    arrow(axes, (to, middle - TALL / 2 - 0.26), (to, middle - SHORT / 2 - 0.02), GATE)
