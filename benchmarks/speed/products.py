"""The matrix products of a piece of work, alone: the time that nothing can go below on this machine.

Every product that runs is noted with the shapes, strides and dtypes of its factors, and run again on random numbers;
packed weights are themselves.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRODUCTS = (
    *("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled_dot_product"),
    *("aten.linear", "aten.matmul"),  # in inference mode they reach the dispatcher whole
    "mkldnn._linear_pointwise",
)


@dataclass(frozen=True)
class Layout:
    """How a factor lies in memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def random(self) -> Tensor:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        return torch.randn(extent, device=self.device).to(self.dtype).as_strided(self.size, self.stride)


class Products(TorchDispatchMode):
    """Notes the products that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if str(func).startswith(PRODUCTS):
            self.calls.append((func, tree_map_only(Tensor, layout, (args, keywords))))
        return func(*args, **keywords)

    def seconds(self) -> float:
        """The time of all of them, one after the other; factors of one layout are one tensor."""
        made: dict[Layout, Tensor] = {}
        total = 0.0
        with torch.no_grad():
            for func, layouts in self.calls:
                args, keywords = tree_map_only(Layout, lambda one: made.setdefault(one, one.random()), layouts)
                began = time.perf_counter()
                func(*args, **keywords)
                total += time.perf_counter() - began
        return total


def floor(work: Callable[[], object], *, repetitions: int = 3) -> float:
    """Seconds of the products of ``work`` alone, the least of some repetitions."""
    with Products() as noted:
        work()
    return min(noted.seconds() for _ in range(repetitions))


def layout(x: Tensor) -> Tensor | Layout:
    if x.is_mkldnn:  # a packed weight stays itself
        return x
    return Layout(tuple(x.shape), x.stride(), x.dtype, x.device)
