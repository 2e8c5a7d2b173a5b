"""Figures of the weights that adapters have learned."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from markupsafe import Markup

from moslora.compare.statistics import Floats
from moslora.report.canvas import DIVERGING, GRID, INK, MUTED, Canvas, below, new_label
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


def by_layer(canvas: Canvas, name: str, runs: Sequence[ReportedRun], attribute: str, title: str) -> Markup | None:
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
        below(axes, title, "layer", columns=5)
    return canvas.keep(name, figure)


def spectra(canvas: Canvas, name: str, runs: Sequence[ReportedRun], title: str, *, of_mixers: bool) -> Markup | None:
    """Singular values: the median over the layers, and where four in five lie; those of M also at the start."""
    shown = [run for run in runs if any(not of_mixers or layer.mixer is not None for layer in run.layers)]
    if not shown:
        return None
    with canvas.figure(4.8, 3.2) as (figure, axes):
        for run in shown:
            color = canvas.color(run.arm)
            values = [layer.spectrum for layer in run.layers]
            if of_mixers:
                values = [_singular(layer.mixer) for layer in run.layers if layer.mixer is not None]
                begun = [_singular(layer.start) for layer in run.layers if layer.start is not None]
                number, start, *_ = _quantiles(begun)
                style = {"linewidth": 1.2, "linestyle": ":", "label": new_label(axes, "at the start")}
                axes.plot(number, start, color=color, **style)
            number, middle, low, high = _quantiles(values)
            axes.fill_between(number, low, high, color=color, alpha=0.15, linewidth=0)
            style = {"marker": "o", "markersize": 3, "linewidth": 1.5, "label": new_label(axes, run.arm)}
            axes.plot(number, middle, color=color, **style)
        if not of_mixers and all(layer.spectrum.all() for run in shown for layer in run.layers):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        below(axes, title, "number of the singular value; band: four in five layers")
    return canvas.keep(name, figure)


def _singular(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def _quantiles(rows: Sequence[Floats]) -> tuple[Floats, Floats, Floats, Floats]:
    """Numbers from 1, and over rows, cut to the shortest, the median and the 10 and 90 % quantiles."""
    table = np.array([row[: min(map(len, rows))] for row in rows])
    low, middle, high = np.quantile(table, [0.1, 0.5, 0.9], axis=0)
    return np.arange(1.0, table.shape[1] + 1), middle, low, high
