"""The weights that adapters have learned: their mixers, and numbers of every layer."""

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from moslora.compare.statistics import Floats
from moslora.report.canvas import DIVERGING, GRID, INK, MUTED, Canvas, label_axes, label_once
from moslora.report.learned import LearnedLayer
from moslora.report.runs import ReportedRun

MAPPED_LAYERS = 6
"""Layers whose mixers are shown, at most."""

BY_LAYER = (
    ("mixer-distance", "distance", "M: distance from its start, ‖M − M₀‖ / ‖M₀‖"),
    ("delta-rank", "effective_rank", "ΔW: effective rank"),
)
"""Name of a figure, the attribute of a `LearnedLayer` that it shows, and its title."""


def heat_maps(canvas: Canvas, run: ReportedRun) -> Markup | None:
    """M of up to :data:`MAPPED_LAYERS` layers of a run; ``None`` if no layer has an M."""
    layers = mapped(run.layers)
    if not layers:
        return None
    return draw_mixers(canvas, f"mixer-{run.name.replace('/', '-')}", layers)


def draw_mixers(canvas: Canvas, name: str, layers: Sequence[LearnedLayer]) -> Markup:
    """M of each layer, and below it M − M₀ where the start is known."""
    mixers = [layer.mixer for layer in layers if layer.mixer is not None]
    starts = [layer.start for layer in layers if layer.start is not None]
    rows = {"M": mixers}
    if len(starts) == len(mixers):
        rows["M − M₀"] = [mixer - start for mixer, start in zip(mixers, starts, strict=True)]
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
    """Layers with an M, by kind: all, or :data:`MAPPED_LAYERS` at even distances."""
    having = [layer for layer in layers if layer.mixer is not None]
    having.sort(key=lambda layer: layer.kind)
    if not having:
        return []
    places = np.linspace(0, len(having) - 1, min(MAPPED_LAYERS, len(having))).astype(int)
    return [having[place] for place in places]


def _draw_row(places: Iterable[Axes], matrices: Sequence[Floats]) -> AxesImage:
    """A heat map of each matrix, all in the same colours."""
    limit = max(float(np.abs(matrix).max()) for matrix in matrices) or 1.0
    for place, matrix in zip(places, matrices, strict=True):
        image = place.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="none")
        place.set(xticks=[], yticks=[])
        place.grid(False)
        place.spines[:].set(visible=True, color=GRID)
    return image


def by_layer(canvas: Canvas, runs: Sequence[ReportedRun], name: str, attribute: str, title: str) -> Markup | None:
    """A number of every layer over its depth, with a colour for each arm and a marker for each kind of layer; ``None``
    if no layer has it."""
    shown = [run for run in runs if _have(run.layers, attribute)]
    if not shown:
        return None
    kinds: dict[str, None] = {}
    for run in shown:
        kinds |= dict.fromkeys(layer.kind for layer in run.layers)
    with canvas.figure(4.8, 3.2) as (figure, axes):
        for run in shown:
            color = canvas.style(run.arm).color
            for kind, marker in zip(kinds, cycle("osD^vPX*<>"), strict=False):
                style = {"marker": marker, "markersize": 3.6, "markeredgewidth": 0, "alpha": 0.8, "linestyle": ""}
                layers = [layer for layer in run.layers if layer.kind == kind]
                if layers:
                    depths = [layer.depth for layer in layers]
                    values = [getattr(layer, attribute) for layer in layers]
                    axes.plot(depths, values, color=color, **style)
                axes.plot([], [], color=MUTED, label=label_once(axes, kind), **style)
        axes.set_ylim(bottom=0)
        label_axes(axes, title, "layer")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=5)
    return canvas.keep(name, figure)


def _have(layers: Sequence[LearnedLayer], attribute: str) -> bool:
    return any(getattr(layer, attribute) is not None for layer in layers)
