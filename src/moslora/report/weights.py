"""Figures of the weights that adapters have learned."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from moslora.compare.statistics import Floats
from moslora.report.canvas import DIVERGING, GRID, INK, MUTED, Canvas, in_steps, legend_below, new_label
from moslora.report.learned import LearnedLayer
from moslora.report.runs import ReportedRun

MARKERS = "osD^vPX*<>"
"""One for each kind of layer."""


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
            for number, kind in enumerate(kinds):
                found = [(layer.depth, getattr(layer, attribute)) for layer in run.layers if layer.kind == kind]
                marker = MARKERS[number % len(MARKERS)]
                style = {"marker": marker, "markersize": 3.6, "markeredgewidth": 0, "alpha": 0.8}
                axes.plot(*zip(*found, strict=True), linestyle="", color=canvas.color(run.arm), **style)
                axes.plot([], [], linestyle="", color=MUTED, label=new_label(axes, kind), **style)
        axes.set_title(title)
        axes.set_xlabel("layer")
        axes.set_ylim(bottom=0)
        in_steps(axes)
        legend_below(axes, columns=5)
    return canvas.keep(name, figure)


def spectra(canvas: Canvas, name: str, runs: Sequence[ReportedRun], title: str, *, of_mixers: bool) -> Markup | None:
    """Singular values: the median over the layers, and where four in five lie; those of M also at the start."""
    shown = [run for run in runs if any(not of_mixers or layer.mixer is not None for layer in run.layers)]
    if not shown:
        return None
    with canvas.figure(4.8, 3.2) as (figure, axes):
        for run in shown:
            color = canvas.color(run.arm)
            if of_mixers:
                start = [_singular(layer.start) for layer in run.layers if layer.start is not None]
                label = new_label(axes, "at the start")
                axes.plot(*_quantiles(start)[:2], color=color, linewidth=1.2, linestyle=":", label=label)
                values = [_singular(layer.mixer) for layer in run.layers if layer.mixer is not None]
            else:
                values = [layer.spectrum for layer in run.layers]
            number, middle, low, high = _quantiles(values)
            axes.fill_between(number, low, high, color=color, alpha=0.15, linewidth=0)
            label = new_label(axes, run.arm)
            axes.plot(number, middle, color=color, marker="o", markersize=3, linewidth=1.5, label=label)
        axes.set_title(title)
        axes.set_xlabel("number of the singular value; band: four in five layers")
        if not of_mixers and all(layer.spectrum.all() for run in shown for layer in run.layers):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        in_steps(axes)
        legend_below(axes)
    return canvas.keep(name, figure)


def _singular(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def _quantiles(rows: Sequence[Floats]) -> tuple[Floats, Floats, Floats, Floats]:
    """Numbers from 1, and over rows, cut to the shortest, the median and the 10 and 90 % quantiles."""
    table = np.array([row[: min(map(len, rows))] for row in rows])
    low, middle, high = np.quantile(table, [0.1, 0.5, 0.9], axis=0)
    return np.arange(1.0, table.shape[1] + 1), middle, low, high
