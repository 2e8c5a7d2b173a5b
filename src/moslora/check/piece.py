"""A piece of the engine beside its plain formula, the random inputs of both, and how far the piece is off."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapters import inject, named_adapters
from moslora.errors import first_line
from moslora.kernels.linear import FrozenLinear
from moslora.kernels.plain import PIECES, VARIABLE
from moslora.kernels.rows import Rows

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

LENGTHS = (20, 33, 9, 17, 5)
CONTINUES = (None, None, 0, 0, 3)
"""Tokens of each row on a CPU, and the row that it continues."""

ON_GPU = 16
"""There a row is so many times as long."""

RANK = 16
ALPHA = 4


@dataclass
class Draw:
    """Random inputs in the sizes of ``config``, rounded to ``rounded``. The plain formula is computed from the same in
    float64."""

    config: Any
    device: torch.device
    rounded: torch.dtype
    plain: bool = False
    learned: list[Tensor] = field(default_factory=list)  # whose gradients are compared

    def __post_init__(self) -> None:
        self.dtype = torch.float64 if self.plain else self.rounded
        times = 1 if self.device.type == "cpu" else ON_GPU
        self.rows = Rows(tuple(times * length for length in LENGTHS), self.device, CONTINUES)  # some continue others
        self.tokens = sum(self.rows.lengths)
        torch.manual_seed(0)

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
        tolerances: the largest `moslora.check.piece.distance`, by dtype in which it is compared.
    """

    name: str
    part: str
    compute: Callable[[Draw], Sequence[Tensor]]
    tolerances: Mapping[torch.dtype, float] = field(default_factory=TOLERANCES.copy)


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
