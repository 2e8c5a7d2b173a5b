"""Figures of the weights that adapters have learned."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from markupsafe import Markup

from moslora.report.canvas import DIVERGING, GRID, INK, MUTED, Canvas, in_steps, new_label
from moslora.report.runs import ReportedRun


def heat_maps(canvas: Canvas, run: ReportedRun) -> Markup | None:
    """M of up to six layers, of each kind from first to last, and below it M − M₀ where the start is known; ``None`` if
    no layer has an M."""
    known = [(one, one.mixer) for one in run.layers if one.mixer is not None]
    if not known:
        return None
    known.sort(key=lambda one: one[0].kind)
    chosen = np.linspace(0, len(known) - 1, min(6, len(known))).astype(int)
    layers, mixers = zip(*(known[n] for n in chosen), strict=True)
    maps = {"M": mixers}
    if all(layer.start is not None for layer in layers):
        maps["M − M₀"] = tuple(mixer - layer.start for layer, mixer in zip(layers, mixers, strict=True))
    height = 1.7 * len(maps)
    with canvas.figure(1.5 * len(layers) + 0.6, height, rows=len(maps), columns=len(layers)) as (figure, axes):
        grid = np.array(axes, dtype=object).reshape(len(maps), len(layers))
        for places, (label, row) in zip(grid, maps.items(), strict=True):
            limit = max(float(np.abs(matrix).max()) for matrix in row) or 1.0
            for place, layer, matrix in zip(places, layers, row, strict=True):
                image = place.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="none")
                place.set(xticks=[], yticks=[])
                place.grid(False)
                place.spines[:].set(visible=True, color=GRID)
                if row is mixers:
                    place.set_title(f"{layer.depth} {layer.kind}", fontsize=8.5, fontweight="normal")
            places[0].set_ylabel(label, color=INK)
            bar = figure.colorbar(image, ax=list(places), shrink=0.85, pad=0.01, aspect=14)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7.5, length=0)
    return canvas.keep(f"mixer-{run.name.replace('/', '-')}", figure)


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
                axes.plot(*zip(*found, strict=True), color=canvas.style(run.arm)[0], **style)
                axes.plot([], [], color=MUTED, label=new_label(axes, kind), **style)
        axes.set_ylim(bottom=0)
        in_steps(axes, title, "layer")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=5)
    return canvas.keep(name, figure)
