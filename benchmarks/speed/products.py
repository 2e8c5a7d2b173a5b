"""The matrix products of a piece of work, alone: the time that nothing can go below on this machine.

Every product that runs is noted with the shapes, strides and dtypes of its factors, and run again on random numbers;
packed weights are themselves.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = (
    *("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled_dot_product"),
    *("aten.linear", "aten.matmul"),  # in inference mode they reach the dispatcher whole
    "mkldnn._linear_pointwise",
)


class Layout(NamedTuple):
    """How a factor lies in memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def random(self) -> Tensor:
        last = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        extent = last + 1
        memory = torch.randn(extent, device=self.device).to(self.dtype)
        return memory.as_strided(self.size, self.stride)


class Products(TorchDispatchMode):
    """Notes the products that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if str(func).startswith(PRODUCTS):
            layouts = _map(args, _layout)
            named_layouts = {key: _map(value, _layout) for key, value in keywords.items()}
            self.calls.append((func, layouts, named_layouts))
        return func(*args, **keywords)

    def seconds(self) -> float:
        """The time of all of them, one after the other; factors of one layout are one tensor."""
        made: dict[Layout, Tensor] = {}

        def tensor(value: Any) -> Any:
            if isinstance(value, Layout):
                return made.setdefault(value, value.random())
            return value

        total = 0.0
        with torch.no_grad():
            for func, layouts, named_layouts in self.calls:
                factors = _map(layouts, tensor)
                named_factors = {key: _map(value, tensor) for key, value in named_layouts.items()}
                began = time.perf_counter()
                func(*factors, **named_factors)
                total += time.perf_counter() - began
        return total


def floor(work: Callable[[], object], *, repetitions: int = 3) -> float:
    """Seconds of the products of ``work`` alone, the least of some repetitions."""
    with Products() as noted:
        work()
    return min(noted.seconds() for _ in range(repetitions))


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor) and not value.is_mkldnn:  # a packed weight stays itself
        return Layout(tuple(value.shape), value.stride(), value.dtype, value.device)
    return value


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple | list) and not isinstance(value, Layout):
        return tuple(_map(item, function) for item in value)
    return function(value)
