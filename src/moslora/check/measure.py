"""How far a piece is from its plain formula."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moslora.check.piece import Draw, Piece
from moslora.errors import first_line
from moslora.kernels.plain import PIECES, VARIABLE

PLAIN_STEP = "model.engine=transformers"
"""What does without a whole step of ours."""

TITLES = ["piece", "dtype", "off", "tolerance"]


@dataclass(frozen=True)
class Finding:
    """What was found of a piece in one dtype.

    Attributes:
        part: of `moslora.check.piece.Piece`.
        off: the largest distance of a result or a gradient; infinite after a fault.
        fault: what ended it, if anything did.
    """

    name: str
    part: str
    dtype: str
    tolerance: float
    off: float = math.inf
    fault: str = ""

    @property
    def passed(self) -> bool:
        return self.off <= self.tolerance

    @property
    def row(self) -> list[str]:
        """Its cells below :data:`TITLES`."""
        return [self.name, self.dtype, f"{self.off:.1e}", f"{self.tolerance:.0e}"]


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
        settings = sorted(parts - {*PIECES, PLAIN_STEP})
        settings.append(f"{VARIABLE}={','.join(pieces)}")
    return [*lines, f"to do without: {' '.join(settings)}"]


def measure(piece: Piece, config: Any, device: torch.device, dtype: torch.dtype) -> Finding:
    """Compares ``piece`` with its formula in float64, over inputs that are those of ``dtype``."""
    off = math.inf
    fault = ""
    try:
        exact = _results(piece, Draw(config, device, dtype, plain=True))
        off = max(map(distance, _results(piece, Draw(config, device, dtype)), exact))
    except Exception as error:  # of any kind: what a kernel raises on a device that nobody has tried
        fault = first_line(error)
    return Finding(piece.name, piece.part, str(dtype).removeprefix("torch."), piece.tolerances[dtype], off, fault)


def distance(computed: Tensor, exact: Tensor) -> float:
    """The largest ‖y' − y‖ of a row, over the root mean square of ‖y‖ of all rows: so one that is wrong does not hide
    among many."""
    y = torch.atleast_1d(exact.detach().double())
    differences = (computed.detach().double() - y).norm(dim=-1)
    off = differences.max() / y.norm(dim=-1).square().mean().sqrt()
    return float(off.nan_to_num(nan=math.inf))


def _results(piece: Piece, draw: Draw) -> Sequence[Tensor]:
    """What is computed, and the gradients of what learns."""
    outputs = piece.compute(draw)
    if not draw.learned:
        return outputs
    torch.manual_seed(1)
    given = [torch.randn(y.shape, device=y.device).to(draw.rounded).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, draw.learned, given)]
