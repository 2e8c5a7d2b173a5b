"""Task names, as lists of them are written."""

import difflib
from collections.abc import Iterable, Sequence

from .commonsense import COMMONSENSE

GROUP = "commonsense"


def split_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names in ``"commonsense"``, ``"boolq,piqa"`` or a list of these; each once, order kept."""
    parts = [part.strip() for part in ",".join([names] if isinstance(names, str) else names).split(",")]
    found = [name for part in parts if part for name in (COMMONSENSE if part == GROUP else (part,))]
    return tuple(dict.fromkeys(found))


def unknown_names(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """A line for each name that is not known, with the closest that is."""
    faults = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(known)}"
            faults.append(f"unknown task {name!r}; {hint}")
    return faults
