"""Comparison of a piece of the engine with its plain formula on random inputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapters import inject, named_adapters
from moslora.errors import first_line
from moslora.kernels.linear import FrozenLinear
from moslora.kernels.plain import PIECES, VARIABLE
from moslora.kernels.rows import Rows
from moslora.processes.devices import is_out_of_memory

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}

TIMES_PLAIN = 1.5
"""Tolerated multiple of the rounding error that the plain formula has in the same dtype."""

FULL_FLOAT32 = "NVIDIA_TF32_OVERRIDE=0"
"""The setting under which a GPU multiplies float32 without rounding the factors to TF32."""

LENGTHS = (20, 33, 9, 17, 5)
CONTINUES = (None, None, 0, 0, 3)
"""Number of tokens of each row on a CPU, and the row that each continues."""

ON_GPU = 16
"""Factor of the rows' lengths on a GPU."""

RANK = 16
ALPHA = 4


@dataclass
class Draw:
    """Random inputs in the sizes of ``config``, rounded to the dtype ``rounded``; creating them seeds torch.

    They are the same numbers for the piece, the ``plain`` formula, and that formula in float64 (``exact``).
    """

    config: Any
    device: torch.device
    rounded: torch.dtype
    plain: bool = False
    exact: bool = False
    seed: int = 0
    learned: list[Tensor] = field(default_factory=list, init=False)  # whose gradients are compared

    def __post_init__(self) -> None:
        self.dtype = torch.float64 if self.exact else self.rounded
        times = 1 if self.device.type == "cpu" else ON_GPU
        self.rows = Rows(tuple(times * length for length in LENGTHS), self.device, CONTINUES)  # some continue others
        self.tokens = sum(self.rows.lengths)
        torch.manual_seed(self.seed)

    def random(self, shape: Sequence[int], *, size: float = 1.0) -> Tensor:
        """Normal numbers of this shape and standard deviation."""
        return (size * torch.randn(shape, device=self.device)).to(self.rounded).to(self.dtype)

    def __call__(self, *shape: int) -> Tensor:
        """Random input of this shape, whose gradient is compared."""
        self.learned.append(self.random(shape).requires_grad_())
        return self.learned[-1]

    def weight(self, *shape: int) -> nn.Parameter:
        """Random frozen weight of this shape."""
        return nn.Parameter(self.random(shape, size=shape[-1] ** -0.5), requires_grad=False)

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """Frozen linear layer, by torch if ``plain``."""
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = self.weight(outputs, inputs)
        return layer if self.plain else FrozenLinear(layer)

    def adapt(self, model: nn.Module, targets: Sequence[str] | str, **mixer: Any) -> None:
        """Inject adapters with random float32 weights, whose gradients are compared."""
        inject(model, rank=RANK, alpha=ALPHA, mixer=mixer, target_modules=targets)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.detach().copy_(torch.randn(weight.shape, device=self.device) * weight.shape[-1] ** -0.5)
                self.learned.append(weight)
        for _, layer in named_adapters(model):
            layer.context.plain = self.plain

    def states(self) -> Tensor:
        """Hidden states of all tokens, ``(tokens, hidden size)``, whose gradient is compared."""
        return self(self.tokens, self.config.hidden_size)


@dataclass(frozen=True)
class Piece:
    """Piece of the engine that is compared with its plain formula.

    Attributes:
        part: its name in `moslora.kernels.plain.PIECES`, or, for a piece without one, the setting that avoids it.
        compute: computes the results from the inputs of a `Draw`; by the plain formula if its ``plain`` is true.
        tolerances: dtype -> maximum :func:`distance`.
        draws: number of random inputs. With several, the mean distance may also be :data:`TIMES_PLAIN` times that of
            the plain formula in the same dtype.
    """

    name: str
    part: str
    compute: Callable[[Draw], Sequence[Tensor]]
    tolerances: Mapping[torch.dtype, float] = field(default_factory=TOLERANCES.copy)
    draws: int = 1


PLAIN_STEP = "model.engine=transformers"
"""Setting with which transformers' modules compute the whole step."""

TITLES = ["piece", "dtype", "off", "tolerance"]


@dataclass(frozen=True)
class Finding:
    """Result of comparing a piece in one dtype.

    Attributes:
        part: see :class:`Piece`.
        off: largest distance of a result or a gradient; infinite after a fault.
        fault: error that ended the comparison, if any.
        fits: whether the GPU had enough memory for the comparison.
    """

    name: str
    part: str
    dtype: str
    tolerance: float
    off: float = math.inf
    fault: str = ""
    fits: bool = True

    @property
    def passed(self) -> bool:
        """Whether the distance from the formula is within the tolerance, or could not be measured for lack of
        memory."""
        return self.off <= self.tolerance or not self.fits

    @property
    def row(self) -> list[str]:
        """Cells of the finding's row in a table with the header :data:`TITLES`."""
        off = f"{self.off:.1e}" if self.fits else "–"
        return [self.name, self.dtype, off, f"{self.tolerance:.0e}"]


def said_of(off: Sequence[Finding]) -> list[str]:
    """Lines that name each failed finding, and the settings that avoid the failing pieces.

    A whole training step also fails if one of its pieces does. Its own setting is named only if no piece fails.
    """
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
    """Compare ``piece`` with its formula in float64, on inputs that are rounded to ``dtype``."""
    finding = Finding(piece.name, piece.part, str(dtype).removeprefix("torch."), piece.tolerances[dtype])
    draws = [Draw(config, device, dtype, seed=seed) for seed in range(piece.draws)]
    try:
        finding = replace(finding, off=fmean(_off(piece, draw) for draw in draws))
        if finding.passed:
            return finding
        shared = TIMES_PLAIN * fmean(_off(piece, replace(draw, plain=True)) for draw in draws)
    except Exception as error:  # of any kind, because the device may be untested
        return replace(finding, fault=first_line(error), fits=not is_out_of_memory(error))
    if piece.draws > 1:
        return replace(finding, tolerance=max(finding.tolerance, shared))
    if dtype == torch.float32 and finding.off <= shared:
        fault = "the plain formula is off too, because this device rounds the factors of products (TF32)"
        return replace(finding, part=FULL_FLOAT32, fault=fault)
    return finding


def _off(piece: Piece, draw: Draw) -> float:
    """Largest distance of the piece's results and gradients from those of its formula in float64."""
    computed = _results(piece, replace(draw))  # a new Draw, which seeds torch
    exact = _results(piece, replace(draw, plain=True, exact=True))
    return max(map(distance, computed, exact))


def distance(computed: Tensor, exact: Tensor) -> float:
    """Largest ‖y' − y‖ of a row, divided by the root mean square of ‖y‖ over all rows; shapes ``(..., width)``.

    The maximum finds a single wrong row among many.
    """
    y = torch.atleast_1d(exact.detach().double())
    differences = (computed.detach().double() - y).norm(dim=-1)
    off = differences.max() / y.norm(dim=-1).square().mean().sqrt()
    return float(off.nan_to_num(nan=math.inf))


def _results(piece: Piece, draw: Draw) -> Sequence[Tensor]:
    """Results of ``piece.compute``, and the gradients of ``draw.learned``."""
    outputs = piece.compute(draw)
    if not draw.learned:
        return outputs
    torch.manual_seed(1)
    given = [torch.randn(y.shape, device=y.device).to(draw.rounded).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, draw.learned, given)]
