"""Heat maps of learned mixers."""

from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from moslora.compare.distribution import Floats
from moslora.report.canvas import DIVERGING, GRID, INK, Canvas
from moslora.report.learned import LearnedLayer

MAPPED_LAYERS = 6
"""Maximum number of layers whose mixers are shown."""


def draw_mixers(canvas: Canvas, name: str, layers: Sequence[LearnedLayer]) -> Markup:
    """Draw M of each layer, and below it M − M₀ if all starts are known."""
    rows = {"M": [layer.mixer for layer in layers]}
    changes = [layer.mixer - layer.start for layer in layers if layer.start is not None]
    if len(changes) == len(layers):
        rows["M − M₀"] = changes
    width = 1.5 * len(layers) + 0.6
    height = 1.7 * len(rows)
    with canvas.figure(width, height, rows=len(rows), columns=len(layers)) as (figure, axes):
        grid = np.array(axes, dtype=object).reshape(len(rows), len(layers))
        for layer, place in zip(layers, grid[0], strict=True):
            place.set_title(f"{layer.depth} {layer.kind}", fontsize=8.5, fontweight="normal")
        for places, (label, matrices) in zip(grid, rows.items(), strict=True):
            image = _draw_row(places, matrices)
            places[0].set_ylabel(label, color=INK)
            bar = figure.colorbar(image, ax=list(places), shrink=0.85, pad=0.01, aspect=14)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7.5, length=0)
    return canvas.keep(name, figure)


def mapped(layers: Sequence[LearnedLayer]) -> list[LearnedLayer]:
    """Return the layers sorted by kind; of more than `MAPPED_LAYERS` in all, only that many, at even distances."""
    by_kind = sorted(layers, key=lambda layer: layer.kind)
    places = np.linspace(0, len(by_kind) - 1, min(MAPPED_LAYERS, len(by_kind))).astype(int)
    return [by_kind[place] for place in places]


def _draw_row(places: Iterable[Axes], matrices: Sequence[Floats]) -> AxesImage:
    """Draw a heat map of each matrix, all with the same colour scale; return the last one."""
    limit = float(np.abs(matrices).max()) or 1.0
    for place, matrix in zip(places, matrices, strict=True):
        image = place.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="none")
        place.set(xticks=[], yticks=[])
        place.grid(False)
        place.spines[:].set(visible=True, color=GRID)
    return image
