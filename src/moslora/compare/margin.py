"""The margin within which two arms are equal, as it is typed and written: a number, or a share of a gain."""

import math
from contextlib import suppress
from dataclasses import dataclass

MUST_BE = (
    "must be above 0: a number in the outcome's unit, such as 0.01, or a share of the gain over the base, such as 20%"
)


@dataclass(frozen=True)
class Margin:
    """The largest difference that does not matter; 0 if nobody knows which.

    Attributes:
        size: in the unit of the outcome; or a share, such as 0.2.
        of_gain: whether it is a share of what the arm that the other is held against gained over its base.
    """

    size: float
    of_gain: bool = False

    @property
    def known(self) -> bool:
        return self.size > 0

    def __str__(self) -> str:
        """As it is typed: ``0.01`` or ``20%``."""
        if self.of_gain:
            return f"{100 * self.size:g}%"
        return f"{self.size:g}"


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
        raise ValueError(MUST_BE)
    if of_gain:
        size /= 100
    return Margin(size, of_gain)
