"""Sum of a step's gradients over all processes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moslora.borrowed import borrowed


class GradientSum:
    """Sum g ← Σ g over the processes, for the gradients g of all ``learned`` parameters, once a step.

    The gradients are copied into flat float32 buffers, the buckets. One ``all_reduce`` adds a bucket up, and the sums
    are copied back. The bucket of the last layers comes first. Each is sent as soon as the step's last backward pass
    has computed its gradients, while that pass continues.

    All processes send the same buckets in the same order. A gradient's place never changes, because the order in which
    three or more addends are rounded depends on it: so a resumed run rounds like an uninterrupted one.

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

    def start(self) -> None:
        """Announce the step's last backward pass."""
        self._unsent = [*self._buckets]
        for bucket in self._buckets:
            bucket.missing = len(bucket.weights)

    def _note(self, bucket: "_Bucket", _: Tensor) -> None:
        """Note that a pass has computed one gradient of ``bucket``, and send the buckets that are complete."""
        bucket.missing -= 1
        while self._unsent and self._unsent[0].missing == 0:
            self._send()

    def _send(self) -> None:
        self._exchanges.append(self._unsent.pop(0).send())

    def finish(self) -> None:
        """Send the remaining buckets and wait for all sums. The device waits, not the host."""
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
        """Start to add the gradients up over the processes."""
        _copy(self._gradients, self._places)
        return dist.all_reduce(self._buffer, async_op=True)

    def receive(self) -> None:
        """Copy the sums into the gradients, once the exchange has ended."""
        _copy(self._places, self._gradients)


def _copy(sources: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    """Copy each of the ``sources`` into its place, together where torch can."""
    together = borrowed("torch._foreach_copy_")
    if together is not None:
        together(places, sources)
        return
    for source, place in zip(sources, places, strict=True):
        place.copy_(source)
