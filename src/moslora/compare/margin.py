"""The margin within which two arms are equal, as it is typed and written: a number, or a share of a gain."""

import math
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Margin:
    """The largest difference that does not matter; 0 if nobody knows which.

    Attributes:
        size: in the unit of the outcome; or a share, such as 0.2.
        of_gain: whether it is a share of what the arm that the other is held against gained over its base.
    """

    size: float
    of_gain: bool = False

    def __str__(self) -> str:
        """As it is typed: ``0.01`` or ``20%``."""
        return f"{100 * self.size:g}%" if self.of_gain else f"{self.size:g}"


def read_margin(text: str | float) -> Margin:
    """The margin that was typed, such as 0.01, or 20% for a share.

    Raises:
        ValueError: it is neither.
    """
    number = str(text).strip()
    of_gain = number.endswith("%")
    size = 0.0
    with suppress(ValueError):
        size = float(number.removesuffix("%"))
    if not 0 < size < math.inf:
        raise ValueError("must be above 0: a number, such as 0.01, or a share of the gain over the base, such as 20%")
    return Margin(size / 100 if of_gain else size, of_gain)
