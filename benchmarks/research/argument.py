"""The pictures and tables of docs/argument.md, from the mixers of `moslora.adapters` themselves: ``make proof``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.research.argument_tables import PARTS, RANK, TABLES, matrices
from benchmarks.research.diagrams import (
    A_LEFT,
    A_RIGHT,
    B_LEFT,
    B_RIGHT,
    SHORT,
    STYLE,
    TALL,
    A,
    Block,
    Shown,
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
from benchmarks.svg import INK, from_figures, write_pictures
from benchmarks.tables import publish

# In inches: the width of a figure, and where its pictures begin.
WIDTH = 9.8
RIGHT = 5.2

# The height of a flow and of its middle; and with boxes under it.
LOW = (2.9, 1.25)
HIGH = (3.4, 1.75)


class Row(NamedTuple):
    """A flow through M, boxes under it, and pictures of this size beside it."""

    m: Tensor
    shown: Sequence[Shown]
    blocks: tuple[Sequence[Block], Sequence[Block]]
    under: Sequence[Callable[..., None]] = ()
    size: float = 1.7


def drawn(*rows: Row) -> Figure:
    """The rows, from the top down."""
    height, low = HIGH if rows[0].under else LOW
    figure, axes = canvas(WIDTH, height * len(rows))
    for number, row in enumerate(rows, start=1):
        middle = (len(rows) - number) * height + low
        flow(axes, row.m, *row.blocks, middle=middle)
        for draw in row.under:
            draw(axes, middle=middle)
        side_by_side(axes, row.shown, middle=middle, size=row.size)
    return figure


def side_by_side(axes: Axes, shown: Sequence[Shown], *, middle: float, size: float = 1.7) -> None:
    """Pictures in the middle of what is right of a flow."""
    gap = 0.25
    begin = (WIDTH + RIGHT - len(shown) * size - gap * (len(shown) - 1)) / 2
    for number, one in enumerate(shown):
        picture(axes, one, left=begin + number * (size + gap), low=middle + 0.1 - size / 2, size=size)


def split(count: int) -> tuple[list[Block], list[Block]]:
    """A and B in as many blocks."""
    rank = "r" if count == 1 else f"r/{count}"
    return blocks("A", f"{rank} × d$_{{in}}$", count), blocks("B", f"d$_{{out}}$ × {rank}", count)


def frozen(axes: Axes, *, middle: float) -> None:
    """W beside the flow."""
    below(axes, "W, frozen", INK, to=(A_LEFT + B_RIGHT) / 2, width=B_RIGHT - A_LEFT, middle=middle)
    low = middle - TALL / 2
    axes.plot([B_RIGHT, Y, Y], [low - 0.43, low - 0.43, low], color=INK, linewidth=1.3)


def lora(m: Tensor) -> Figure:
    shown = [Shown(m, "M = I", "r strands, each goes\nstraight from A to B")]
    return drawn(Row(m, shown, split(1), under=[frozen]))


def experts(one: Tensor, other: Tensor, sparse: Tensor) -> Figure:
    shown = [
        Shown(one, "M(x)", "dense gate,\none token"),
        Shown(other, "M(x)", "dense gate,\nanother token"),
        Shown(sparse, "M(x)", "top-2 gate,\nthe first token"),
    ]
    of_all = partial(gate, text="gate", to=(A_RIGHT + B_LEFT) / 2)
    return drawn(Row(one, shown, split(PARTS), under=[of_all], size=1.3))


def gates_inside(one: Tensor, other: Tensor) -> Figure:
    shown = [Shown(one, "M(x)", "one token"), Shown(other, "M(x)", "another token")]
    of_b = partial(gate, text="gate$_B$", to=B_LEFT - 0.36)
    of_a = partial(gate, text="gate$_A$", to=A_RIGHT + 0.36)
    return drawn(Row(one, shown, split(PARTS), under=[of_b, of_a]))


def split_r(m: Tensor, a: Tensor) -> Figure:
    shown = [Shown(a, "A", "every part\nreads all of x", A), Shown(m, "M = I", "exactly LoRA")]
    return drawn(Row(m, shown, split(PARTS)))


def split_d(m: Tensor, a: Tensor) -> Figure:
    blocks_a, blocks_b = split(PARTS)
    slices = []
    for place, block in enumerate(blocks_a):
        own_slice = (1 - (place + 1) / PARTS, 1 - place / PARTS)
        slices.append(Block(block.name, "r/3 × d$_{in}$/3", own_slice))
    shown = [
        Shown(a, "A", "every part reads\nits own slice of x", A),
        Shown(m, "M = I", "not LoRA, because\nof the zeros in A"),
    ]
    return drawn(Row(m, shown, (slices, blocks_b)))


def heads() -> Figure:
    height, middle = LOW
    figure, axes = canvas(WIDTH, height)
    v = blocks("V", "d/3 × d", PARTS)
    o = blocks("O", "d × d/3", PARTS)
    flow(axes, torch.eye(RANK), v, o, middle=middle, sizes=("d", "d"), between="")
    for low, high in heights(PARTS, SHORT, middle):
        place = (A_RIGHT + 0.3, low + 0.04)
        box(axes, place, B_LEFT - A_RIGHT - 0.6, high - low - 0.08, INK, "head", "attends")
    text = (
        "Attention is cut in the same way:\none product V x for all heads,\n"
        "every head alone with its d/3 numbers,\none product O that adds what they found."
    )
    axes.text(RIGHT + 0.4, middle, text, va="center", size=10, linespacing=1.7)
    return figure


def crossed(*by_count: Tensor) -> Figure:
    rows = []
    for m, count in zip(by_count, (2, 3), strict=True):
        caption = f"blocks: {count}\nrank {torch.linalg.matrix_rank(m)} of {len(m)}"
        rows.append(Row(m, [Shown(m, f"M: {count} × {count} blocks I", caption)], split(count)))
    return drawn(*rows)


def learned(kronecker: Tensor, dense: Tensor) -> Figure:
    of_parts = "Kronecker, at its start: a weight\nfor each pair of parts, k² in all"
    of_strands = "MoSLoRA, at its start: a weight\nfor each pair of strands, r² in all"
    return drawn(
        Row(kronecker, [Shown(kronecker, "M = G ⊗ I", of_parts)], split(PARTS)),
        Row(dense, [Shown(dense, "M", of_strands)], split(1)),
    )


def steps(*ms: Tensor) -> Figure:
    """All of the argument in one row."""
    figure, axes = canvas(WIDTH, 2.1)
    size = 1.3
    gap = 0.36
    low = 0.4
    middle = low + size / 2
    titles = ("LoRA", "experts", "gates inside", "gates removed", "strands crossed", "weights learned")
    captions = ("M = I", "M(x)", "M(x)", "M = I", "M fixed", "M learned")
    for number, (m, title, caption) in enumerate(zip(ms, titles, captions, strict=True)):
        left = 0.1 + number * (size + gap)
        picture(axes, Shown(m, title, caption), left=left, low=low, size=size)
        if number:
            arrow(axes, (left - gap + 0.07, middle), (left - 0.07, middle), INK)
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
    figures = {f"argument/{name}.svg": partial(draw, *shown.get(name, ())) for name, draw in FIGURES.items()}
    return from_figures(STYLE, figures)


def main() -> None:
    write_pictures(pictures())
    for name, make_table in TABLES.items():
        publish(make_table(), DOCS / "argument.md", name, print_only=False)


if __name__ == "__main__":
    command(main)
