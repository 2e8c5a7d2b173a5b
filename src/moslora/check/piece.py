"""A piece of the engine beside its plain formula, and the random inputs of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapters import inject, named_adapters
from moslora.kernels.linear import FrozenLinear
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
        tolerances: the largest `moslora.check.measure.distance`, by dtype in which it is compared.
    """

    name: str
    part: str
    compute: Callable[[Draw], Sequence[Tensor]]
    tolerances: Mapping[torch.dtype, float] = field(default_factory=TOLERANCES.copy)
