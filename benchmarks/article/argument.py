"""The pictures and tables of docs/argument.md, from the mixers of `moslora.adapters` themselves: ``make proof``."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import DOCS
from benchmarks.article.argument_tables import PARTS, RANK, TABLES, matrices
from benchmarks.article.diagrams import (
    A_LEFT,
    A_RIGHT,
    B_LEFT,
    B_RIGHT,
    SHORT,
    STYLE,
    TALL,
    A,
    Block,
    M,
    Y,
    arrow,
    below,
    blocks,
    box,
    canvas,
    flow,
    gate,
    heights,
    picture,
)
from benchmarks.svg import INK, from_figure, write_pictures
from benchmarks.tables import write_between


class Shown(NamedTuple):
    """A picture of a matrix."""

    matrix: Tensor
    title: str
    caption: str
    colour: str = M


WIDTH, RIGHT = 9.8, 5.2
"""Of a figure, and where its pictures begin, in inches."""

LOW, MIDDLE, HIGH, HIGH_MIDDLE = 2.9, 1.25, 3.4, 1.75
"""Height of a flow and of its middle, without and with a box under it."""


def side_by_side(axes: Axes, shown: Sequence[Shown], *, middle: float, left: float = RIGHT, size: float = 1.7) -> None:
    """Pictures in the middle of what is right of ``left``."""
    gap = 0.25
    left += (WIDTH - left - len(shown) * size - gap * (len(shown) - 1)) / 2
    for number, one in enumerate(shown):
        at = left + number * (size + gap)
        text = {"title": one.title, "caption": one.caption, "colour": one.colour}
        picture(axes, one.matrix, left=at, low=middle + 0.1 - size / 2, size=size, **text)


def split(count: int) -> tuple[list[Block], list[Block]]:
    """A and B in as many blocks."""
    r = "r" if count == 1 else f"r/{count}"
    return blocks("A", f"{r} × d$_{{in}}$", count), blocks("B", f"d$_{{out}}$ × {r}", count)


def lora(m: Tensor) -> Figure:
    figure, axes = canvas(WIDTH, HIGH)
    middle = HIGH_MIDDLE
    flow(axes, m, *split(1), middle=middle)
    below(axes, "W, frozen", INK, to=(A_LEFT + B_RIGHT) / 2, width=B_RIGHT - A_LEFT, middle=middle)
    low = middle - TALL / 2
    axes.plot([B_RIGHT, Y, Y], [low - 0.43, low - 0.43, low], color=INK, linewidth=1.3)
    side_by_side(axes, [Shown(m, "M = I", "r strands, each goes\nstraight from A to B")], middle=middle)
    return figure


def experts(one: Tensor, other: Tensor, sparse: Tensor) -> Figure:
    figure, axes = canvas(WIDTH, HIGH)
    flow(axes, one, *split(PARTS), middle=HIGH_MIDDLE)
    gate(axes, "gate", to=(A_RIGHT + B_LEFT) / 2, middle=HIGH_MIDDLE)
    shown = [
        Shown(one, "M(x)", "dense gate,\none token"),
        Shown(other, "M(x)", "dense gate,\nanother token"),
        Shown(sparse, "M(x)", "top-2 gate,\nthe first token"),
    ]
    side_by_side(axes, shown, middle=HIGH_MIDDLE, size=1.3)
    return figure


def gates_inside(one: Tensor, other: Tensor) -> Figure:
    figure, axes = canvas(WIDTH, HIGH)
    flow(axes, one, *split(PARTS), middle=HIGH_MIDDLE)
    gate(axes, "gate$_B$", to=B_LEFT - 0.36, middle=HIGH_MIDDLE)
    gate(axes, "gate$_A$", to=A_RIGHT + 0.36, middle=HIGH_MIDDLE)
    side_by_side(axes, [Shown(one, "M(x)", "one token"), Shown(other, "M(x)", "another token")], middle=HIGH_MIDDLE)
    return figure


def split_r(m: Tensor, a: Tensor) -> Figure:
    figure, axes = canvas(WIDTH, LOW)
    flow(axes, m, *split(PARTS), middle=MIDDLE)
    shown = [Shown(a, "A", "every part\nreads all of x", A), Shown(m, "M = I", "exactly LoRA")]
    side_by_side(axes, shown, middle=MIDDLE)
    return figure


def split_d(m: Tensor, a: Tensor) -> Figure:
    figure, axes = canvas(WIDTH, LOW)
    slices = [
        Block(block.name, "r/3 × d$_{in}$/3", (1 - (place + 1) / PARTS, 1 - place / PARTS))
        for place, block in enumerate(split(PARTS)[0])
    ]
    flow(axes, m, slices, split(PARTS)[1], middle=MIDDLE)
    shown = [
        Shown(a, "A", "every part reads\nits own slice of x", A),
        Shown(m, "M = I", "not LoRA, because\nof the zeros in A"),
    ]
    side_by_side(axes, shown, middle=MIDDLE)
    return figure


def heads() -> Figure:
    figure, axes = canvas(WIDTH, LOW)
    v, o = blocks("V", "d/3 × d", PARTS), blocks("O", "d × d/3", PARTS)
    flow(axes, torch.eye(RANK), v, o, middle=MIDDLE, sizes=("d", "d"), between="")
    for low, high in heights(PARTS, SHORT, MIDDLE):
        box(axes, A_RIGHT + 0.3, low + 0.04, B_LEFT - A_RIGHT - 0.6, high - low - 0.08, INK, "head", "attends")
    text = (
        "Attention is cut in the same way:\none product V x for all heads,\n"
        "every head alone with its d/3 numbers,\none product O that adds what they found."
    )
    axes.text(RIGHT + 0.4, MIDDLE, text, va="center", size=10, linespacing=1.7)
    return figure


def crossed(halves: Tensor, thirds: Tensor) -> Figure:
    figure, axes = canvas(WIDTH, 2 * LOW)
    for m, count, middle in ((halves, 2, LOW + MIDDLE), (thirds, 3, MIDDLE)):
        flow(axes, m, *split(count), middle=middle)
        caption = f"blocks: {count}\nrank {torch.linalg.matrix_rank(m)} of {len(m)}"
        side_by_side(axes, [Shown(m, f"M: {count} × {count} blocks I", caption)], middle=middle)
    return figure


def learned(kronecker: Tensor, dense: Tensor) -> Figure:
    figure, axes = canvas(WIDTH, 2 * LOW)
    flow(axes, kronecker, *split(PARTS), middle=LOW + MIDDLE)
    caption = "Kronecker, at its start: a weight\nfor each pair of parts, k² in all"
    side_by_side(axes, [Shown(kronecker, "M = G ⊗ I", caption)], middle=LOW + MIDDLE)
    flow(axes, dense, *split(1), middle=MIDDLE)
    caption = "MoSLoRA, at its start: a weight\nfor each pair of strands, r² in all"
    side_by_side(axes, [Shown(dense, "M", caption)], middle=MIDDLE)
    return figure


def steps(*ms: Tensor) -> Figure:
    """All of the argument in one row."""
    figure, axes = canvas(WIDTH, 2.1)
    size, gap, low = 1.3, 0.36, 0.4
    titles = ("LoRA", "experts", "gates inside", "gates removed", "strands crossed", "weights learned")
    captions = ("M = I", "M(x)", "M(x)", "M = I", "M fixed", "M learned")
    for number, (m, title, caption) in enumerate(zip(ms, titles, captions, strict=True)):
        left = 0.1 + number * (size + gap)
        picture(axes, m, left=left, low=low, size=size, title=title, caption=caption)
        if number:
            arrow(axes, (left - gap + 0.07, low + size / 2), (left - 0.07, low + size / 2), INK)
    return figure


FIGURES: dict[str, Callable[..., Figure]] = {
    "steps": steps,
    "lora": lora,
    "experts": experts,
    "gates-inside": gates_inside,
    "split-r": split_r,
    "split-d": split_d,
    "heads": heads,
    "crossed": crossed,
    "learned": learned,
}


def pictures() -> dict[str, str]:
    """Path in docs/ -> SVG."""
    shown = matrices()
    found = {}
    with plt.rc_context(STYLE):
        for name, make in FIGURES.items():
            figure = make(*shown.get(name, ()))
            found[f"argument/{name}.svg"] = from_figure(figure)
            plt.close(figure)
    return found


def main() -> None:
    write_pictures(pictures())
    page = DOCS / "argument.md"
    for name, make_table in TABLES.items():
        text = make_table()
        write_between(page, name, text)
        print(f"\n{name}\n\n{text}")
    print(f"\nwritten: {page}")


if __name__ == "__main__":
    main()
