"""Margin within which two arms are equal: a number, or a share of a gain.

The tests are in `moslora.compare.equality`.
"""

import math
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Margin:
    """Largest negligible difference; 0 if it is unknown.

    Attributes:
        size: number in the unit of the outcome, or a share, such as 0.2.
        of_gain: whether it is a share of the first arm's gain over its base.
    """

    size: float
    of_gain: bool = False

    def __str__(self) -> str:
        """Return the text that `read_margin` reads: ``0.01`` or ``20%``."""
        return f"{100 * self.size:g}%" if self.of_gain else f"{self.size:g}"


def read_margin(text: str | float) -> Margin:
    """Return the margin of a text such as 0.01, or 20% for a share.

    Raises:
        ValueError: the text is neither a positive number nor a share.
    """
    number = str(text).strip()
    of_gain = number.endswith("%")
    size = 0.0
    with suppress(ValueError):
        size = float(number.removesuffix("%"))
    if not 0 < size < math.inf:
        raise ValueError("must be above 0: a number, such as 0.01, or a share of the gain over the base, such as 20%")
    return Margin(size / 100 if of_gain else size, of_gain)
