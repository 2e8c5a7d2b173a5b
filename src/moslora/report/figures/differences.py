"""Differences between arms, with their intervals."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from moslora.compare.contrast import Contrast
from moslora.report.canvas import MUTED, Canvas, Style, label_once, legend_above
from moslora.report.figures.layout import height, offsets, row_names, set_rows


def differences(canvas: Canvas, name: str, contrasts: Sequence[Contrast], how: str) -> Markup:
    """Per task and on average: each contrast, all against one arm, with its 95 % interval; ``how`` says which."""
    first = contrasts[0]
    names = row_names(list(first.y))
    with canvas.figure(5, height(len(names), 1 + len(contrasts))) as (figure, axes):
        axes.axvline(0, color=MUTED, linewidth=1.2)
        for contrast, offset in zip(contrasts, offsets(len(contrasts)), strict=True):
            for row, task in enumerate(names):
                _draw(axes, contrast, task, row + offset, canvas.style(contrast.after))
        axes.locator_params(axis="x", nbins=5)  # more of them run into each other
        set_rows(axes, names, f"difference from {first.before}, {first.unit.unit}, {how}; filled: shown")
        if len(contrasts) > 1:
            legend_above(axes)
    return canvas.keep(name, figure)


def _draw(axes: Axes, contrast: Contrast, task: str, place: float, style: Style) -> None:
    """The difference in one task, with its interval; filled where it is shown."""
    effect = contrast.effects[task]
    factor = contrast.unit.factor
    label = label_once(axes, contrast.after)
    filled_with = "none"
    if effect.shown:
        filled_with = style.color
    ends = [factor * end for end in effect.interval]
    axes.plot(ends, [place] * 2, color=style.color, linewidth=1.8, solid_capstyle="round")
    axes.plot(
        factor * effect.difference,
        place,
        style.marker,
        label=label,
        color=style.color,
        markersize=5,
        markerfacecolor=filled_with,
    )
