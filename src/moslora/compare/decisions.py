"""What holds of the named contrasts jointly, and at which look at an experiment each of them was decided."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from moslora.compare.comparison import Comparison
from moslora.compare.contrast import Contrast
from moslora.compare.equality import p_unequal
from moslora.compare.statistics import LEVEL, MACRO, Member, family_with

Names = tuple[str, str]
"""Of the two arms of a contrast."""


def members_of(comparison: Comparison) -> Iterator[tuple[Contrast, Member]]:
    """The named contrasts, and what holds of each jointly with the others."""
    differences = [contrast.effects[MACRO] for contrast in comparison.named]
    unequal = [p_unequal(contrast, comparison.margin) for contrast in comparison.named]
    members = family_with(differences, unequal, count=comparison.count)
    return zip(comparison.named, members, strict=True)


def decided(comparison: Comparison) -> dict[Names, int]:
    """Contrast -> the number of seeds of the look that decided it, by Holm: as equal within the margin, as different,
    or as both. Later looks leave it decided, as no p rises."""
    found: dict[Names, int] = {}
    most = max(len(contrast.looks or ()) for contrast in comparison.named)
    for number in range(1, most + 1):
        so_far = tuple(contrast.after_looks(number) for contrast in comparison.named)
        for contrast, member in members_of(replace(comparison, named=so_far)):
            is_decided = min(member.equal, member.different) <= LEVEL
            if contrast.looks and is_decided:
                found.setdefault((contrast.before, contrast.after), contrast.looks[-1].seeds)
    return found


def lines_of_looks(comparison: Comparison) -> Iterator[str]:
    """When an experiment was looked at, and after how many seeds its contrasts were decided; nothing if it was looked
    at only in the end."""
    if comparison.looks is None:
        return
    *early, last = comparison.looks.planned.after
    after = ", ".join(str(count) for count in early)
    yield (
        f"looks after {after} and {last} seeds, each with its share of the level, so that intervals and p hold"
        " whichever look ended a contrast"
    )
    yield from decisions_in_words(comparison.names, decided(comparison), seeds=last)


def decisions_in_words(named: Sequence[Names], after: Mapping[Names, int], *, seeds: int) -> Iterator[str]:
    """Which of the ``named`` contrasts were decided ``after`` how many of all seeds, and which were not."""
    same_first = len({before for before, _ in named}) == 1
    arms_by_count: dict[int, list[str]] = {}
    still_open = []
    for before, other in named:
        name = other
        if not same_first:
            name = f"{other} against {before}"
        if (before, other) in after:
            arms_by_count.setdefault(after[before, other], []).append(name)
        else:
            still_open.append(name)
    for count, names in sorted(arms_by_count.items()):
        yield f"decided after {count} of {seeds} seeds: {', '.join(names)}"
    if still_open:
        yield f"not decided: {', '.join(still_open)}"
