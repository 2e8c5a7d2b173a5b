"""A piece of the engine beside its plain formula, the random inputs of both, and how far the piece is off."""

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
"""How many times the rounding error of the plain formula, computed in the same dtype, is within a tolerance."""

FULL_FLOAT32 = "NVIDIA_TF32_OVERRIDE=0"
"""The setting under which a GPU multiplies float32 without rounding the factors to TF32."""

LENGTHS = (20, 33, 9, 17, 5)
CONTINUES = (None, None, 0, 0, 3)
"""Tokens of each row on a CPU, and the row that it continues."""

ON_GPU = 16
"""There a row is so many times as long."""

RANK = 16
ALPHA = 4


@dataclass
class Draw:
    """Random inputs in the sizes of ``config``, rounded to ``rounded``: for the piece, the ``plain`` formula, or that
    formula in float64 (``exact``), which gets the same numbers. Seeds torch."""

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
        return (size * torch.randn(shape, device=self.device)).to(self.rounded).to(self.dtype)

    def __call__(self, *shape: int) -> Tensor:
        """An input that learns."""
        self.learned.append(self.random(shape).requires_grad_())
        return self.learned[-1]

    def weight(self, *shape: int) -> nn.Parameter:
        """A frozen weight."""
        return nn.Parameter(self.random(shape, size=shape[-1] ** -0.5), requires_grad=False)

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = self.weight(outputs, inputs)
        return layer if self.plain else FrozenLinear(layer)

    def adapt(self, model: nn.Module, targets: Sequence[str] | str, **mixer: Any) -> None:
        """Adapters off their start, in float32."""
        inject(model, rank=RANK, alpha=ALPHA, mixer=mixer, target_modules=targets)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.detach().copy_(torch.randn(weight.shape, device=self.device) * weight.shape[-1] ** -0.5)
                self.learned.append(weight)
        for _, layer in named_adapters(model):
            layer.context.plain = self.plain

    def states(self) -> Tensor:
        """Hidden states of all tokens, which learn."""
        return self(self.tokens, self.config.hidden_size)


@dataclass(frozen=True)
class Piece:
    """What is compared.

    Attributes:
        part: its name among `moslora.kernels.plain.PIECES`, or the setting under which runs do without it.
        compute: what is computed from the inputs, by the plain formula where they say so.
        tolerances: the largest `moslora.selfcheck.piece.distance`, by dtype in which it is compared.
        draws: how many random inputs are compared. Of several, the mean distance is compared with :data:`TIMES_PLAIN`
            times that of the plain formula in the same dtype, if this is more than the tolerance.
    """

    name: str
    part: str
    compute: Callable[[Draw], Sequence[Tensor]]
    tolerances: Mapping[torch.dtype, float] = field(default_factory=TOLERANCES.copy)
    draws: int = 1


PLAIN_STEP = "model.engine=transformers"
"""What does without a whole step of ours."""

TITLES = ["piece", "dtype", "off", "tolerance"]


@dataclass(frozen=True)
class Finding:
    """What was found of a piece in one dtype.

    Attributes:
        part: of `moslora.selfcheck.piece.Piece`.
        off: the largest distance of a result or a gradient; infinite after a fault.
        fault: what ended it, if anything did.
        fits: whether the GPU's memory is enough for the comparison.
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
        return self.off <= self.tolerance or not self.fits

    @property
    def row(self) -> list[str]:
        """Its cells below :data:`TITLES`."""
        off = f"{self.off:.1e}" if self.fits else "–"
        return [self.name, self.dtype, off, f"{self.tolerance:.0e}"]


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
    found = Finding(piece.name, piece.part, str(dtype).removeprefix("torch."), piece.tolerances[dtype])
    draws = [Draw(config, device, dtype, seed=seed) for seed in range(piece.draws)]
    try:
        found = replace(found, off=fmean(_off(piece, draw) for draw in draws))
        if found.passed:
            return found
        shared = TIMES_PLAIN * fmean(_off(piece, replace(draw, plain=True)) for draw in draws)
    except Exception as error:  # of any kind: what a kernel raises on a device that nobody has tried
        return replace(found, fault=first_line(error), fits=not is_out_of_memory(error))
    if piece.draws > 1:
        return replace(found, tolerance=max(found.tolerance, shared))
    if dtype == torch.float32 and found.off <= shared:
        fault = "so is the plain formula, as this device rounds the factors of products (TF32)"
        return replace(found, part=FULL_FLOAT32, fault=fault)
    return found


def _off(piece: Piece, draw: Draw) -> float:
    """The largest distance of what is computed from ``draw``, and of its gradients, from those in float64."""
    found = _results(piece, replace(draw))  # which seeds
    exact = _results(piece, replace(draw, plain=True, exact=True))
    return max(map(distance, found, exact))


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
