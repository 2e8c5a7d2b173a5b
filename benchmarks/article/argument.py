"""The pictures and tables of docs/argument.md, from the mixers of `moslora.adapters` themselves: ``make proof``."""

from collections.abc import Callable, Sequence

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
    Area,
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
from benchmarks.svg import INK, from_figure, write_pictures
from benchmarks.tables import write_between

# In inches: the width of a figure, and where its pictures begin.
WIDTH = 9.8
RIGHT = 5.2

# The height of a flow and of its middle.
LOW = 2.9
MIDDLE = 1.25

# The same with a box under the flow.
HIGH = 3.4
HIGH_MIDDLE = 1.75


def side_by_side(axes: Axes, shown: Sequence[Shown], *, middle: float, size: float = 1.7) -> None:
    """Pictures in the middle of what is right of a flow."""
    gap = 0.25
    free = WIDTH - RIGHT - len(shown) * size - gap * (len(shown) - 1)
    begin = RIGHT + free / 2
    for number, one in enumerate(shown):
        picture(axes, one, left=begin + number * (size + gap), low=middle + 0.1 - size / 2, size=size)


def split(count: int) -> tuple[list[Block], list[Block]]:
    """A and B in as many blocks."""
    rank = "r"
    if count > 1:
        rank = f"r/{count}"
    blocks_a = blocks("A", f"{rank} × d$_{{in}}$", count)
    blocks_b = blocks("B", f"d$_{{out}}$ × {rank}", count)
    return blocks_a, blocks_b


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
    blocks_a, blocks_b = split(PARTS)
    slices = []
    for place, block in enumerate(blocks_a):
        own_slice = (1 - (place + 1) / PARTS, 1 - place / PARTS)
        slices.append(Block(block.name, "r/3 × d$_{in}$/3", own_slice))
    flow(axes, m, slices, blocks_b, middle=MIDDLE)
    shown = [
        Shown(a, "A", "every part reads\nits own slice of x", A),
        Shown(m, "M = I", "not LoRA, because\nof the zeros in A"),
    ]
    side_by_side(axes, shown, middle=MIDDLE)
    return figure


def heads() -> Figure:
    figure, axes = canvas(WIDTH, LOW)
    v = blocks("V", "d/3 × d", PARTS)
    o = blocks("O", "d × d/3", PARTS)
    flow(axes, torch.eye(RANK), v, o, middle=MIDDLE, sizes=("d", "d"), between="")
    for low, high in heights(PARTS, SHORT, MIDDLE):
        area = Area(A_RIGHT + 0.3, low + 0.04, width=B_LEFT - A_RIGHT - 0.6, height=high - low - 0.08)
        box(axes, area, INK, "head", "attends")
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
