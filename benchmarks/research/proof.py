"""The figures and tables of docs/proof.md, computed and written in place: ``make proof``."""

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.research.comparisons import (
    butterfly_distances,
    comparisons,
    drift,
    path,
    smallest_growth,
    start_matters,
    twin_rule,
)
from benchmarks.research.trajectories import ROUNDING, STEPS
from benchmarks.research.update_rules import (
    ADAM,
    ADAMW,
    CLIP_NORM,
    CLIP_VALUE,
    ELEMENTWISE,
    EQUIVARIANT,
    LION,
    MUON,
    NESTEROV,
    SGD,
    TORCH_MUON,
)
from benchmarks.svg import INK, from_figures, write_pictures
from benchmarks.tables import markdown, publish

FLOOR = 1e-17
"""Where a distance of exactly zero is drawn."""

# Okabe and Ito's palette, which colour-blind readers can tell apart.
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
RED = "#D55E00"
PURPLE = "#CC79A7"

STYLE: Any = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "grid.color": INK,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


Distances = dict[str, dict[str, torch.Tensor]]
"""By rule and comparison: the distance after each step."""

RULES = (*EQUIVARIANT, *ELEMENTWISE, TORCH_MUON)


def measure() -> Distances:
    return {rule.name: {key: pair.distances(rule) for key, pair in comparisons().items()} for rule in RULES}


def largest_table(found: Distances) -> str:
    """The largest distance of each comparison under each rule."""
    rows = [["", *found]]
    for key, pair in comparisons().items():
        rows.append([pair.label, *(short(of_rule[key].max().item()) for of_rule in found.values())])
    return markdown(rows, numbers=True)


def twins_table() -> str:
    """Two-subspace mixing, plain and normalised: its twin's rate, and the distance under both rules."""
    rows = []
    for rule in (*EQUIVARIANT, *ELEMENTWISE):
        row = [rule.name]
        for normalize in (False, True):
            rate = twin_rule(rule, normalize=normalize).lr / rule.lr
            twin, same = butterfly_distances(rule, normalize=normalize)
            row += [f"{rate:.3g}", short(twin.max().item()), short(same.max().item())]
        rows.append(row)
    header = ["", "plain: rate ×", "distance", "same rule", "normalised: rate ×", "distance", "same rule"]
    return markdown([header, *rows], numbers=True)


def starts_table() -> str:
    """An orthogonal start compared with the identity under Adam."""
    found = start_matters(ADAM, draws=100, after=(10, STEPS))
    row = [ADAM.name, *(f"{1e3 * mean:+.2f} ± {1e3 * error:.2f}" for mean, error in found.values())]
    header = ["1000 × (loss of orthogonal − loss of identity)", *(f"step {step}" for step in found)]
    return markdown([header, row], numbers=True)


def short(value: float) -> str:
    """0.23, 4e-3, 5e-16: short enough for a cell of a table."""
    if value == 0:
        return "0"
    if value >= 0.01:
        return f"{value:.2f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def mark_rounding(axis: Axes) -> None:
    """A logarithmic scale of distances, with a band for those that are equal."""
    axis.set(yscale="log", ylim=(FLOOR / 2, 5))
    axis.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axis.axhspan(FLOOR / 2, ROUNDING, color=INK, alpha=0.12, linewidth=0, zorder=0)


def draw_distances(found: Distances) -> Figure:
    """Distance over steps: a panel a rule, a line a mixer."""
    lines = {
        "Q": (BLUE, "-", "orthogonal, fixed"),
        "P": (GREEN, "-", "signed permutation, fixed"),
        "R": (SKY, "-", "orthonormal rows, fixed"),
        "K": (RED, "-", "Kaiming, fixed"),
        "Q learned": (BLUE, "--", "orthogonal, learned"),
        "K learned": (RED, "--", "Kaiming, learned"),
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 7), sharex=True, sharey=True)
    for axis, rule in zip(axes.flat, (SGD, NESTEROV, MUON, CLIP_VALUE, ADAM, LION), strict=True):
        for key, (colour, dashes, label) in lines.items():
            values = found[rule.name][key].clamp(min=FLOOR)
            axis.plot(range(1, STEPS + 1), values, dashes, color=colour, label=label)
        axis.set(title=rule.name, xscale="log", xlim=(1, STEPS))
        axis.set_xticks([1, 2, 5, 10, 20, STEPS], ["1", "2", "5", "10", "20", str(STEPS)])
        axis.set_xticks([], minor=True)
        mark_rounding(axis)
    axes[0, 0].text(50, 2e-11, "equal to rounding", ha="right", va="top", fontsize=9)
    for row, kind in enumerate(("commutes with rotations", "works entry by entry")):
        axes[row, 0].set_ylabel(f"update {kind}\n\nrelative distance of ΔW")
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=9.5)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def draw_heat_map(found: Distances) -> Figure:
    """The largest distance of each comparison under each rule."""
    pairs = comparisons()
    rules = (*EQUIVARIANT, *ELEMENTWISE)
    distances = torch.tensor([[found[rule.name][key].max() for rule in rules] for key in pairs])
    figure, axis = plt.subplots(figsize=(10, 6))
    # The darkest end for what is equal, so that the two kinds part in a grey print as well.
    logarithms = distances.clamp(min=FLOOR).log10()
    image = axis.pcolormesh(logarithms, cmap="cividis", vmin=-16, vmax=0, edgecolors="white", linewidth=1.2)
    for row, values in enumerate(distances.tolist()):
        for column, value in enumerate(values):
            colour = "white" if value < ROUNDING else "black"
            axis.text(column + 0.5, row + 0.5, short(value), ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(np.arange(len(rules)) + 0.5, [rule.name.replace(" ", "\n") for rule in rules], fontsize=9)
    axis.set_yticks(np.arange(len(pairs)) + 0.5, [pair.label for pair in pairs.values()])
    axis.invert_yaxis()
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    axis.axvline(len(EQUIVARIANT), color=INK, linewidth=4)
    bar = figure.colorbar(image, ax=axis, fraction=0.025, pad=0.02, ticks=[-16, -12, -8, -4, 0])
    bar.ax.set_yticklabels(["10⁻¹⁶", "10⁻¹²", "10⁻⁸", "10⁻⁴", "1"])
    bar.set_label("largest relative distance")
    bar.outline.set_visible(False)
    figure.tight_layout()
    return figure


def draw_conservation() -> Figure:
    """How M Mᵀ grows, and how far BᵀB − M Mᵀ drifts, while the rate is halved and the path refined."""
    start = comparisons()["Q learned"].start
    colours = {SGD: (GREEN, BLUE, SKY), ADAM: (PURPLE, RED, ORANGE)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for rule, of_rule in colours.items():
        for repeat, colour, dashes in zip((1, 2, 4), of_rule, ("-", "--", ":"), strict=True):
            taken = path(start, rule, repeat=repeat)
            time = torch.arange(1, STEPS * repeat + 1) / (STEPS * repeat)
            label = f"{rule.name}, rate {rule.lr / repeat:g}"
            left.plot(time, smallest_growth(taken, start), dashes, color=colour, label=label)
            right.plot(time, drift(taken, start).clamp(min=1e-5), dashes, color=colour, label=label)
    left.axhline(0, color=INK, linewidth=0.8)
    left.set(title="smallest eigenvalue of MMᵀ − M₀M₀ᵀ", xlabel="rate × steps, as a share of the whole")
    right.set(title="drift of BᵀB − MMᵀ", xlabel="rate × steps, as a share of the whole", yscale="log")
    right.set_ylim(1e-5, 3)
    right.legend(fontsize=9, loc="lower right")
    figure.tight_layout()
    return figure


def draw_butterfly() -> Figure:
    """Two-subspace mixing against LoRA of half the rank, under the twin's rule and under its own."""
    kinds = ((False, BLUE, "plain"), (True, ORANGE, "normalised"))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9), sharey=True)
    for axis, rule in zip(axes, (CLIP_NORM, ADAMW, MUON), strict=True):
        for normalize, colour, kind in kinds:
            pair = butterfly_distances(rule, normalize=normalize)
            for values, dashes, against in zip(pair, ("-", "--"), ("twin’s rule", "same rule"), strict=True):
                line = values.clamp(min=FLOOR)
                axis.plot(range(1, STEPS + 1), line, dashes, color=colour, label=f"{kind}, {against}")
        axis.set(title=rule.name, xlim=(1, STEPS), xlabel="step")
        axis.set_xticks([1, 20, 40, 60])
        mark_rounding(axis)
    axes[0].set_ylabel("relative distance of ΔW")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def pictures(found: Distances) -> dict[str, str]:
    """Path in docs/ -> SVG."""
    figures: dict[str, Callable[[], Figure]] = {
        "proof/distances.svg": lambda: draw_distances(found),
        "proof/heat-map.svg": lambda: draw_heat_map(found),
        "proof/conservation.svg": draw_conservation,
        "proof/butterfly.svg": draw_butterfly,
    }
    return from_figures(STYLE, figures)


def main() -> None:
    torch.set_num_threads(1)
    measured = measure()
    write_pictures(pictures(measured))
    tables = {"largest": largest_table(measured), "twins": twins_table(), "starts": starts_table()}
    for name, table in tables.items():
        publish(table, DOCS / "proof.md", f"table: {name}", print_only=False)


if __name__ == "__main__":
    command(main)
