"""Tables of measurements, and the documents that they are written into."""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def spread(values: Sequence[float], *, digits: int = 2) -> str:
    """Text with median and quartiles of ``values``."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def ratios(values: Sequence[float], of: Sequence[float]) -> list[float]:
    """Ratios of ``values`` to ``of``, pair by pair."""
    return [value / other for value, other in zip(values, of, strict=True)]


def against_first(found: Mapping[str, Sequence[Mapping[str, Any]]], amount: float) -> dict[str, tuple[str, str, str]]:
    """Table cells of each contestant, from the "seconds" that its processes took for this ``amount``.

    The cells are the amount per second, how many times as fast the first contestant is, round by round, and the share
    of the time spent in matrix products, if it was measured.
    """
    seconds = {who: [one["seconds"] for one in each] for who, each in found.items()}
    ours = next(iter(found))
    cells = {}
    for who, each in found.items():
        ours_is = ""
        if who != ours:
            ours_is = f"{spread(ratios(seconds[who], seconds[ours]))} ×"
        products = ""
        if each[0].get("products"):
            products = f"{statistics.median(one['products'] / one['seconds'] for one in each):.0%}"
        cells[who] = spread([amount / took for took in seconds[who]]), ours_is, products
    return cells


def markdown(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Markdown table, header first; with ``numbers`` all columns but the first are aligned on the right."""
    columns = len(rows[0])
    rule = "|" + "---|" * columns
    if numbers:
        rule = "| --- |" + " --: |" * (columns - 1)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def write_between(path: Path, name: str, text: str) -> None:
    """Write ``text`` between the comments ``<!-- name -->`` and ``<!-- /name -->`` of a document.

    Raises:
        ValueError: the comments are not there once each, in this order.
    """
    begin = f"<!-- {name} -->"
    end = f"<!-- /{name} -->"
    document = path.read_text(encoding="utf-8")
    head, found, rest = document.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found and found_end) or begin in rest or end in tail:
        raise ValueError(f"{path}: must contain {begin} and {end} once each, in this order")
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


def publish(text: str, page: Path, name: str, *, print_only: bool) -> None:
    """Print ``text``, and write it between the comments ``name`` of ``page`` unless ``print_only``."""
    print(text)
    if not print_only:
        write_between(page, name, text)
        print(f"written to {page}")


def machine() -> str:
    """Line with the device and the version of torch."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        from moslora.processes.devices import device_name  # not at the top: a timed process loads no more than it needs

        device = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{device}; torch {torch.__version__}"
