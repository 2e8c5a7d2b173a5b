"""Adapter factors that layers with the same input share in a pass."""

import weakref

from torch import Tensor

from moslora.kernels.dropout import Dropout
from moslora.kernels.recompute import project


class Factors:
    """Scaled factors of layers that read the same x; the layers share dropout and the product with ``a``.

    Args:
        a: s · M · A of all layers, stacked, ``(layers · r, in_features)``; s · A if M is not folded.
        b: B of each layer, ``(out_features, r)``.
    """

    def __init__(self, a: Tensor, *b: Tensor) -> None:
        self.a = a
        self.b = b
        self._of: weakref.ref[Tensor] | None = None  # weak: checkpointing recomputes x as another tensor
        self._left: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    def project_down(self, x: Tensor, place: int, dropout: Dropout) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return a layer's h = dropout(x) aᵀ, ``(..., r)``; x for its base; and the result of `Dropout.draw`.

        The layer is the one at ``place``. The first layer that is called with ``x`` computes h for all layers. See
        :func:`moslora.kernels.recompute.project` for the x that the base reads.
        """
        if self._of is None or self._of() is not x or place not in self._left:
            drawn = dropout.draw(x)
            h, x_for_base = project(x, self.a, drawn)
            parts: tuple[Tensor, ...] = (h,)
            if len(self.b) > 1:
                parts = h.split(h.shape[-1] // len(self.b), -1)
            self._of = weakref.ref(x)
            self._left = {at: (part, x_for_base, drawn) for at, part in enumerate(parts)}
        return self._left.pop(place)
