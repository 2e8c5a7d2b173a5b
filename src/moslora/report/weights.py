"""Figures of the weights that adapters have learned."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from markupsafe import Markup

from moslora.report.canvas import DIVERGING, GRID, INK, MUTED, Canvas, in_steps, new_label
from moslora.report.learned import LearnedLayer
from moslora.report.runs import ReportedRun


def heat_maps(canvas: Canvas, name: str, layers: Sequence[LearnedLayer]) -> Markup:
    """M of these layers, which have one, and below it M − M₀."""
    pairs = [(layer.mixer, layer.start) for layer in layers if layer.mixer is not None and layer.start is not None]
    maps = [[mixer for mixer, _ in pairs], [mixer - start for mixer, start in pairs]]
    with canvas.figure(1.5 * len(layers) + 0.6, 3.4, rows=2, columns=len(layers)) as (figure, axes):
        for places, row, label in zip(axes, maps, ("M", "M − M₀"), strict=True):
            limit = max(float(np.abs(matrix).max()) for matrix in row) or 1.0
            for place, layer, matrix in zip(places, layers, row, strict=True):
                image = place.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="none")
                place.set(xticks=[], yticks=[])
                place.grid(False)
                place.spines[:].set(visible=True, color=GRID)
                if row is maps[0]:
                    place.set_title(f"{layer.depth} {layer.kind}", fontsize=8.5, fontweight="normal")
            places[0].set_ylabel(label, color=INK)
            bar = figure.colorbar(image, ax=list(places), shrink=0.85, pad=0.01, aspect=14)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7.5, length=0)
    return canvas.keep(name, figure)


def by_layer(canvas: Canvas, runs: Sequence[ReportedRun], name: str, attribute: str, title: str) -> Markup | None:
    """A number of every layer over its depth: colours are arms, markers kinds of layers."""
    shown = [run for run in runs if any(getattr(layer, attribute) is not None for layer in run.layers)]
    if not shown:
        return None
    kinds = list(dict.fromkeys(layer.kind for run in shown for layer in run.layers))
    with canvas.figure(4.8, 3.2) as (figure, axes):
        for run in shown:
            for kind, marker in zip(kinds, cycle("osD^vPX*<>"), strict=False):
                found = [(layer.depth, getattr(layer, attribute)) for layer in run.layers if layer.kind == kind]
                style = {"marker": marker, "markersize": 3.6, "markeredgewidth": 0, "alpha": 0.8, "linestyle": ""}
                axes.plot(*zip(*found, strict=True), color=canvas.color(run.arm), **style)
                axes.plot([], [], color=MUTED, label=new_label(axes, kind), **style)
        axes.set_ylim(bottom=0)
        in_steps(axes, title, "layer")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=5)
    return canvas.keep(name, figure)
