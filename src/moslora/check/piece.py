"""A piece of the engine beside its plain formula, and the random inputs of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moslora.kernels.linear import FrozenLinear
from moslora.kernels.rows import Rows

Compute = Callable[[], Sequence[Tensor]]
Pair = tuple[Compute, Compute]
"""Ours, and the plain formula."""

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

LENGTHS = (20, 33, 9, 17, 5)
CONTINUES = (None, None, 0, 0, 3)
"""Tokens of each row on a CPU, and the row that it continues."""

ON_GPU = 16
"""There a row is so many times as long."""


@dataclass
class Draw:
    """Random inputs in the sizes of ``config``: the same in every ``dtype``, but for the rounding to ``rounded``."""

    config: Any
    device: torch.device
    dtype: torch.dtype
    rounded: torch.dtype
    learned: list[Tensor] = field(default_factory=list)  # whose gradients are compared

    def __post_init__(self) -> None:
        times = 1 if self.device.type == "cpu" else ON_GPU
        self.rows = Rows(tuple(times * length for length in LENGTHS), self.device, CONTINUES)  # some continue others
        self.tokens = sum(self.rows.lengths)
        torch.manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        """An input that learns."""
        x = torch.randn(shape, device=self.device).to(self.rounded).to(self.dtype).requires_grad_()
        self.learned.append(x)
        return x

    def weight(self, *shape: int) -> nn.Parameter:
        """A frozen weight."""
        weight = torch.randn(shape, device=self.device) * shape[-1] ** -0.5
        return nn.Parameter(weight.to(self.rounded).to(self.dtype), requires_grad=False)

    def linear(self, inputs: int, outputs: int) -> FrozenLinear:
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = self.weight(outputs, inputs)
        return FrozenLinear(layer)

    def move(self, module: nn.Module) -> None:
        """Gives the weights of ``module`` that learn random values; they stay in float32."""
        for weight in module.parameters():
            if weight.requires_grad:
                weight.detach().copy_(torch.randn(weight.shape, device=self.device) * weight.shape[-1] ** -0.5)
                self.learned.append(weight)

    def states(self) -> Tensor:
        """Hidden states of all tokens, which learn."""
        return self(self.tokens, self.config.hidden_size)


@dataclass(frozen=True)
class Piece:
    """What is compared.

    Attributes:
        part: its name among `moslora.kernels.plain.PIECES`, or the setting under which runs do without it.
        make: from inputs to two functions that return tensors.
        tolerances: the largest `moslora.check.measure.distance`, by dtype in which it is compared.
    """

    name: str
    part: str
    make: Callable[[Draw], Pair]
    tolerances: Mapping[torch.dtype, float] = field(default_factory=TOLERANCES.copy)
