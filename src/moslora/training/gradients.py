"""The gradients of a step, added up over all processes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GradientSum:
    """g ← Σ g over the processes, for the gradients g of all ``learned`` parameters, once a step.

    The gradients are copied into a flat float32 buffer, the bucket, which one ``all_reduce`` adds up, and back. Of
    several ``buckets``, that of the last layers comes first, and each is sent once the step's last backward pass has
    computed its gradients, while that pass goes on.

    All processes send the same buckets in the same order. A gradient's place never changes, as the order in which three
    addends or more are rounded depends on it: a resumed run rounds as one that was not interrupted.

    Args:
        learned: in the model's order. Every backward pass gives each a gradient.
    """

    def __init__(self, learned: Sequence[nn.Parameter], *, buckets: int = 1) -> None:
        size = max(1, -(-len(learned) // buckets))
        in_buckets = [_Bucket(learned[begin : begin + size]) for begin in range(0, len(learned), size)]
        self._buckets = in_buckets[::-1]
        self._unsent: list[_Bucket] = []
        self._exchanges: list[Any] = []
        if buckets == 1:
            return
        for bucket in self._buckets:
            for weight in bucket.weights:
                weight.register_post_accumulate_grad_hook(partial(self._note, bucket))

    def begin(self) -> None:
        """Announces the step's last backward pass."""
        self._unsent = [*self._buckets]
        for bucket in self._buckets:
            bucket.missing = len(bucket.weights)

    def _note(self, bucket: "_Bucket", _: Tensor) -> None:
        """Notes that a pass has computed one gradient of ``bucket``, and sends what is complete."""
        bucket.missing -= 1
        while self._unsent and self._unsent[0].missing == 0:
            self._send()

    def _send(self) -> None:
        self._exchanges.append(self._unsent.pop(0).send())

    def finish(self) -> None:
        """Adds up what the pass has left, and waits for all: the device does, not the host."""
        while self._unsent:
            self._send()
        for bucket, exchange in zip(self._buckets, self._exchanges, strict=True):
            exchange.wait()
            bucket.receive()
        self._exchanges.clear()


class _Bucket:
    """Parameters, and a buffer with a place for the gradient of each."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        self.missing = 0
        sizes = [weight.numel() for weight in weights]
        self._buffer = torch.empty(sum(sizes), device=weights[0].device)
        self._places = [place.view_as(weight) for place, weight in zip(self._buffer.split(sizes), weights, strict=True)]

    @property
    def _gradients(self) -> list[Any]:
        return [weight.grad for weight in self.weights]

    def send(self) -> Any:
        """Begins to add the gradients up over the processes."""
        torch._foreach_copy_(self._places, self._gradients)
        return dist.all_reduce(self._buffer, async_op=True)

    def receive(self) -> None:
        """Copies the sums into the gradients."""
        torch._foreach_copy_(self._gradients, self._places)
