"""Time of the matrix products of some work alone: a lower bound for the work on this machine.

Every product is recorded with the shapes, strides and dtypes of its factors, and repeated on random numbers; packed
weights are used as they are.
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
    """Memory layout of a factor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def random(self) -> Tensor:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        return torch.randn(extent, device=self.device).to(self.dtype).as_strided(self.size, self.stride)


class Products(TorchDispatchMode):
    """Recorder of the products that run within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if str(func).startswith(PRODUCTS):
            self.calls.append((func, tree_map_only(Tensor, layout, (args, keywords))))
        return func(*args, **keywords)

    def seconds(self) -> float:
        """Time of all products, one after the other; factors with the same layout are one tensor."""
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
    """Seconds of the products of ``work`` alone: the minimum of some repetitions."""
    with Products() as noted:
        work()
    return min(noted.seconds() for _ in range(repetitions))


def layout(x: Tensor) -> Tensor | Layout:
    if x.is_mkldnn:  # a packed weight stays itself
        return x
    return Layout(tuple(x.shape), x.stride(), x.dtype, x.device)
