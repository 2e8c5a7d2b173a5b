"""Shares as text: in percent."""

from moslora.evaluation.intervals import Interval

NONE = "–"
"""A number in a table that there is not."""


def percent(share: float | None) -> str:
    """0.6615 as ``66.2``."""
    return NONE if share is None else f"{100 * share:.1f}"


def percent_range(interval: Interval | None) -> str:
    """(0.6198, 0.7003) as ``62.0 to 70.0``."""
    return NONE if interval is None else " to ".join(map(percent, interval))
