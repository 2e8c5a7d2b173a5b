"""The tables of docs/proof.md: proof.py writes them into the page, and its test compares them with it."""

from collections.abc import Iterable

import torch

from comparisons import (
    butterfly_distances,
    comparisons,
    drift,
    path,
    smallest_growth,
    start_matters,
    twin_rule,
)
from trajectories import STEPS
from update_rules import ADAM, ELEMENTWISE, EQUIVARIANT, SGD, TORCH_MUON

Distances = dict[str, dict[str, torch.Tensor]]
"""By rule and comparison: the distance after each step."""

RULES = (*EQUIVARIANT, *ELEMENTWISE, TORCH_MUON)


def measure() -> Distances:
    return {rule.name: {key: pair.distances(rule) for key, pair in comparisons().items()} for rule in RULES}


def largest_table(found: Distances) -> str:
    """The largest distance of each comparison under each rule."""
    rows = [
        [pair.label, *(short(found[rule.name][key].max().item()) for rule in RULES)]
        for key, pair in comparisons().items()
    ]
    return table(["", *(rule.name for rule in RULES)], rows)


def first_table(found: Distances) -> str:
    """The distance after a few steps."""
    shown = (1, 2, 3, 10, STEPS)
    rows = [
        [f"{comparisons()[key].label}, {rule.name}", *(short(found[rule.name][key][t - 1].item()) for t in shown)]
        for key in ("K", "Q learned", "K learned")
        for rule in (SGD, ADAM)
    ]
    return table(["", *(f"step {t}" for t in shown)], rows)


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
    return table(header, rows)


def starts_table() -> str:
    """An orthogonal start compared with the identity under Adam."""
    found = start_matters(ADAM, draws=100, after=(10, STEPS))
    row = [ADAM.name, *(f"{1e3 * mean:+.2f} ± {1e3 * error:.2f}" for mean, error in found.values())]
    return table(["1000 × (loss of orthogonal − loss of identity)", *(f"step {t}" for t in found)], [row])


def drift_table() -> str:
    """What gradient flow conserves, while the rate is halved and the path refined."""
    start = comparisons()["Q learned"].start
    rows = []
    for rule in (SGD, ADAM):
        previous = None
        for repeat in (1, 2, 4):
            taken = path(start, rule, repeat=repeat)
            largest = drift(taken, start).max().item()
            ratio = "" if previous is None else f"{previous / largest:.2f}"
            fall = smallest_growth(taken, start).min().item()
            rows.append([rule.name, f"{rule.lr / repeat:g}", f"{largest:.4f}", ratio, f"{fall:.1e}"])
            previous = largest
    return table(["", "rate", "largest drift", "ratio", "smallest eigenvalue"], rows)


def short(value: float) -> str:
    """0.23, 4e-3, 5e-16: short enough for a cell of a table."""
    if value == 0:
        return "0"
    if value >= 0.01:
        return f"{value:.2f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    header = list(header)
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
