"""How far a piece is from its plain formula, and how long both take."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moslora.check.piece import Compute, Draw, Piece
from moslora.errors import first_line
from moslora.kernels.plain import PIECES, VARIABLE
from moslora.processes.devices import wait_for

SECONDS = 0.2
"""Time in which a computation is repeated; the fastest counts."""

PLAIN_STEP = "model.engine=transformers"
"""What does without a whole step of ours."""

TITLES = ["piece", "dtype", "off", "tolerance", "ours, ms", "plain, ms"]


@dataclass(frozen=True)
class Finding:
    """What was found of a piece in one dtype.

    Attributes:
        part: of `moslora.check.piece.Piece`.
        off: the largest distance of a result or a gradient; infinite after a fault.
        milliseconds: of both passes of ours, and of the plain formula in that dtype, where they were measured.
        fault: what ended it, if anything did.
    """

    name: str
    part: str
    dtype: str
    tolerance: float
    off: float = math.inf
    milliseconds: tuple[float, ...] = ()
    fault: str = ""

    @property
    def passed(self) -> bool:
        return self.off <= self.tolerance

    @property
    def row(self) -> list[str]:
        """Its cells below :data:`TITLES`."""
        times = [f"{each:,.2f}" for each in self.milliseconds] or ["", ""]
        return [self.name, self.dtype, f"{self.off:.1e}", f"{self.tolerance:.0e}", *times]


def said_of(off: Sequence[Finding]) -> list[str]:
    """A line for each finding that is ``off``, and the settings that do without them all. A step is off with any of its
    pieces, and needs a setting of its own only without them."""
    lines = []
    for finding in off:
        fault = f": {finding.fault}" if finding.fault else ""
        lines.append(f"off: {finding.name} in {finding.dtype}{fault}")
    parts = {finding.part for finding in off}
    pieces = sorted(parts & {*PIECES})
    settings = sorted(parts - {*PIECES})
    if pieces:
        settings = [setting for setting in settings if setting != PLAIN_STEP]
        settings.append(f"{VARIABLE}={','.join(pieces)}")
    return [*lines, f"to do without: {' '.join(settings)}"]


def measure(piece: Piece, config: Any, device: torch.device, dtype: torch.dtype) -> Finding:
    """Compares ``piece`` with its formula in float64, over inputs that are those of ``dtype``."""
    about = (piece.name, piece.part, str(dtype).removeprefix("torch."), piece.tolerances[dtype])
    try:
        draw = Draw(config, device, torch.float64, dtype)
        _, exact = piece.make(draw)
        expected = _results(exact, draw)
        draw = Draw(config, device, dtype, dtype)
        both = piece.make(draw)
        off = max(map(distance, _results(both[0], draw), expected))
        return Finding(*about, off, tuple(_milliseconds(compute, draw) for compute in both))
    except Exception as fault:  # of any kind: what a kernel raises on a device that nobody has tried
        return Finding(*about, fault=first_line(fault))


def distance(found: Tensor, exact: Tensor) -> float:
    """The largest ‖y' − y‖ of a row, over the root mean square of ‖y‖ of all rows: so one that is wrong does not hide
    among many."""
    y = torch.atleast_1d(exact.detach().double())
    differences = (found.detach().double() - y).norm(dim=-1)
    off = differences.max() / y.norm(dim=-1).square().mean().sqrt()
    return float(off.nan_to_num(nan=math.inf))


def _results(compute: Compute, draw: Draw) -> Sequence[Tensor]:
    """What is computed, and the gradients of what learns."""
    outputs = compute()
    if not draw.learned:
        return outputs
    torch.manual_seed(1)
    given = [torch.randn(y.shape, device=y.device).to(draw.rounded).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, draw.learned, given)]


def _milliseconds(compute: Compute, draw: Draw) -> float:
    fastest = math.inf
    end = time.perf_counter() + SECONDS
    while math.isinf(fastest) or time.perf_counter() < end:
        began = time.perf_counter()
        _results(compute, draw)
        wait_for(draw.device)
        fastest = min(fastest, time.perf_counter() - began)
    return 1e3 * fastest
