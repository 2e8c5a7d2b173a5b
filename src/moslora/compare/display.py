"""A comparison as tables. Header first."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import isfinite

from moslora.compare.comparison import Comparison
from moslora.compare.contrast import Contrast
from moslora.compare.equality import inner_in_words, p_unequal, title_of_inner
from moslora.compare.gains import gain_in_words, title_of_gain
from moslora.compare.statistics import MACRO, MICRO, Member, family_with, holm


def tables(comparison: Comparison) -> list[list[list[str]]]:
    """The table of the family, if several contrasts were named. Otherwise that of all arms, if there are more than
    two, and that of the one contrast that was named."""
    main = comparison.main
    if comparison.named and main is None:
        return [_family_table(comparison)]
    found = []
    if comparison.exploratory:
        found.append(_exploratory_table(comparison))
    if main is not None:
        found.append(_of_contrast(main))
    return found


def members_of(comparison: Comparison) -> Iterator[tuple[Contrast, Member]]:
    """The named contrasts, and what holds of each jointly with the others."""
    differences = [contrast.effects[MACRO] for contrast in comparison.named]
    unequal = [p_unequal(contrast, comparison.margin) for contrast in comparison.named]
    members = family_with(differences, unequal, count=comparison.count)
    return zip(comparison.named, members, strict=True)


def _family_table(comparison: Comparison) -> list[list[str]]:
    columns = ("arm", "joint 95 % interval", "p (different)", title_of_inner(comparison.margin), "p (equal)")
    rows = []
    for contrast, member in members_of(comparison):
        joint = ""
        inner = ""
        if isfinite(member.interval[0]):  # not that of one seed, where others have several
            joint = contrast.unit.range(member.interval)
            inner = inner_in_words(contrast, comparison.margin)
        rows.append((contrast, [joint, probability(member.different), inner, probability(member.equal)]))
    return _by_arm(comparison, columns, rows)


def _exploratory_table(comparison: Comparison) -> list[list[str]]:
    rows = []
    for contrast in comparison.exploratory:
        effect = contrast.effects[MACRO]
        rows.append((contrast, [contrast.unit.range(effect.interval), probability(effect.p)]))
    return _by_arm(comparison, ("arm (exploratory)", "95 % interval", "p"), rows)


def _of_contrast(contrast: Contrast) -> list[list[str]]:
    """A row per task and average: both arms, their difference, and p by Holm over the tasks."""
    columns = ["task", "n"]
    if contrast.majority:
        columns.append("majority")
    columns += [contrast.before, contrast.after, "difference", "95 % interval", "p (Holm)"]
    unit = contrast.unit
    tasks = list(contrast.y)
    adjusted = dict(zip(tasks, holm([contrast.effects[task].p for task in tasks]), strict=True))
    names = [*tasks, MACRO, MICRO] if len(tasks) > 1 else tasks
    rows = []
    for name in names:
        row = [name, f"{contrast.questions(name):,}"]
        if name in contrast.majority:
            row.append(unit.level(contrast.majority[name].mean()))
        elif contrast.majority:
            row.append("")
        levels = [unit.level(mean) for mean in contrast.means[name]]
        effect = contrast.effects[name]
        p = probability(adjusted[name]) if name in adjusted else ""
        rows.append([*row, *levels, unit.change(effect.difference), unit.range(effect.interval), p])
    return [columns, *rows]


def _by_arm(comparison: Comparison, columns: Sequence[str], found: list[tuple[Contrast, list[str]]]) -> list[list[str]]:
    """A row per contrast, below that of the arm that it is held against.

    Args:
        comparison: of these contrasts.
        columns: the title of the first column, and those of the last ones.
        found: contrasts, each with its cells in the last columns.
    """
    tasks = list(found[0][0].y)
    averages = {"macro": MACRO, "micro": MICRO}
    if len(tasks) == 1:
        averages = {tasks[0]: tasks[0]}
    titles = [columns[0], "seeds", *averages]
    with_gains = any(contrast.gains is not None for contrast, _ in found)
    if with_gains:
        titles.append(title_of_gain(comparison.unit))
    rows = [[*titles, "difference", *columns[1:]]]
    for before, together in groupby(found, key=lambda pair: pair[0].before):
        own = [contrast for contrast, _ in found if contrast.before == before]
        most = max(own, key=lambda contrast: (contrast.seeds, contrast.gains is not None))
        runs = next(len(arm.runs) for arm in comparison.arms if arm.name == before)
        levels = _levels(most, 0, averages.values(), with_gain=with_gains)
        rows.append([before, str(min(runs, len(most.y[tasks[0]][0]))), *levels, *[""] * len(columns)])
        for contrast, cells in together:
            levels = _levels(contrast, 1, averages.values(), with_gain=with_gains)
            difference = contrast.unit.change(contrast.effects[MACRO].difference)
            rows.append([contrast.after, str(len(contrast.y[tasks[0]][1])), *levels, difference, *cells])
    return rows


def _levels(contrast: Contrast, arm: int, averages: Iterable[str], *, with_gain: bool) -> list[str]:
    """The means of the first (0) or the second arm (1), and ``with_gain`` what it gained over the base."""
    cells = [contrast.unit.level(contrast.means[name][arm]) for name in averages]
    if with_gain:
        gains = contrast.gains or (None, None)
        cells.append(gain_in_words(gains[arm], contrast.unit))
    return cells


def probability(p: float) -> str:
    """p with three digits after the point."""
    if p < 0.0005:
        return "<.001"
    return f"{p:.3f}".replace("0.", ".", 1)
