"""Confusion matrices: the right option of each question against the chosen one."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from moslora.report.canvas import DIVERGING, INK, Canvas
from moslora.runs.confusion import NO_ANSWER


def confusion_matrix(
    canvas: Canvas, name: str, title: str, matrix: Sequence[Sequence[int]], options: Sequence[str]
) -> Markup:
    """Draw the number of questions in each cell, coloured by its share of the row.

    Args:
        canvas: canvas of the report.
        name: name of the file.
        title: title of the figure.
        matrix: numbers by right option (rows) and chosen option or no answer (columns).
        options: texts of the options.
    """
    counts = np.array(matrix)
    side = 1.6 + 0.42 * len(options)
    with canvas.figure(side + 0.8, side) as (figure, axes):
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap=DIVERGING, vmin=-1.3, vmax=1.3, interpolation="none")
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=INK)
        axes.set_xticks(range(len(options) + 1), [*options, NO_ANSWER], rotation=45, ha="right")
        axes.set_yticks(range(len(options)), options)
        axes.set(title=title, xlabel="chosen", ylabel="right")
        axes.grid(False)
    return canvas.keep(name, figure)
