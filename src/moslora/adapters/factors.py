"""The factors that layers which read the same x share in a pass."""

import weakref

from torch import Tensor

from moslora.kernels.dropout import Dropout
from moslora.kernels.recompute import project


class Factors:
    """The factors of layers that read the same x, as their products take them: s · M · A of all, one above another, in
    ``a`` (s · A where M is not folded), and each B in ``b``. They share dropout, and one product with ``a``."""

    def __init__(self, a: Tensor, *b: Tensor) -> None:
        self.a = a
        self.b = b
        self._of: weakref.ref[Tensor] | None = None  # weakly: what checkpointing computes again is another x
        self._left: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    def project_down(self, x: Tensor, place: int, dropout: Dropout) -> tuple[Tensor, Tensor, Tensor | None]:
        """h of the layer at ``place``, ``(..., r)``; x for its base, as :func:`project` gives it; what is dropped. The
        first that is called computes it for all."""
        if self._of is None or self._of() is not x or place not in self._left:
            drawn = dropout.draw(x)
            h, x_for_base = project(x, self.a, drawn)
            parts: tuple[Tensor, ...] = (h,)
            if len(self.b) > 1:
                parts = h.split(h.shape[-1] // len(self.b), -1)
            self._of = weakref.ref(x)
            self._left = {at: (part, x_for_base, drawn) for at, part in enumerate(parts)}
        return self._left.pop(place)
