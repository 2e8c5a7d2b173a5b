"""A comparison as tables, each a list of rows with the header first."""

from collections.abc import Iterator, Sequence
from math import isfinite

from moslora.compare.comparison import Comparison
from moslora.compare.contrast import Contrast
from moslora.compare.equality import equivalence_interval_in_words, equivalence_title, p_unequal
from moslora.compare.gains import gain_in_words, title_of_gain
from moslora.compare.statistics import Member, family_with, holm
from moslora.runs.scores import MACRO, MICRO


def tables(comparison: Comparison) -> list[list[list[str]]]:
    """Return the tables of a comparison: a single table of the family, if several contrasts were named.

    Otherwise a table of all arms, if there are more than two, and a table of the only named contrast.
    """
    main = comparison.main
    if comparison.named and main is None:
        return [_family_table(comparison)]
    tables = []
    if comparison.exploratory:
        rows = []
        for contrast in comparison.exploratory:
            effect = contrast.effects[MACRO]
            rows.append((contrast, [contrast.outcome.range(effect.interval), probability(effect.p)]))
        tables.append(_by_arm(comparison, ("arm (exploratory)", "95 % interval", "p"), rows))
    if main is not None:
        tables.append(_contrast_table(main))
    return tables


def members_of(comparison: Comparison) -> Iterator[tuple[Contrast, Member]]:
    """Return the named contrasts, each with its interval and p values in the family of all."""
    differences = [contrast.effects[MACRO] for contrast in comparison.named]
    unequal = [p_unequal(contrast, comparison.margin) for contrast in comparison.named]
    members = family_with(differences, unequal, count=comparison.count)
    return zip(comparison.named, members, strict=True)


def _family_table(comparison: Comparison) -> list[list[str]]:
    """Return the table of a comparison with several contrasts that were named beforehand."""
    columns = ("arm", "joint 95 % interval", "p (different)", equivalence_title(comparison.margin), "p (equal)")
    rows = []
    for contrast, member in members_of(comparison):
        is_known = isfinite(member.interval[0])  # infinite for a single seed among contrasts of several
        joint = contrast.outcome.range(member.interval) if is_known else ""
        equivalence_interval = equivalence_interval_in_words(contrast, comparison.margin) if is_known else ""
        rows.append((contrast, [joint, probability(member.different), equivalence_interval, probability(member.equal)]))
    return _by_arm(comparison, columns, rows)


def _contrast_table(contrast: Contrast) -> list[list[str]]:
    """Return a row per task and average: both arms, their difference, and p by Holm over the tasks."""
    outcome = contrast.outcome
    tasks = list(contrast.y)
    holms = holm([contrast.effects[task].p for task in tasks])
    adjusted = dict(zip(tasks, map(probability, holms), strict=True))
    majority = {task: outcome.level(labels.mean()) for task, labels in contrast.majority.items()}
    columns = [contrast.before, contrast.after, "difference", "95 % interval", "p (Holm)"]
    rows = [["task", "n", "majority", *columns] if majority else ["task", "n", *columns]]
    for name in [*tasks, MACRO, MICRO] if len(tasks) > 1 else tasks:
        row = [name, f"{contrast.questions(name):,}"]
        if majority:
            row.append(majority.get(name, ""))
        row += [outcome.level(mean) for mean in contrast.means[name]]
        effect = contrast.effects[name]
        rows.append([*row, outcome.change(effect.difference), outcome.range(effect.interval), adjusted.get(name, "")])
    return rows


def _by_arm(
    comparison: Comparison, columns: Sequence[str], rows: Sequence[tuple[Contrast, list[str]]]
) -> list[list[str]]:
    """Return a row for each first arm, and below it a row for each of its contrasts.

    Args:
        comparison: comparison of these contrasts.
        columns: titles of the first column and of the last columns.
        rows: contrasts, each with its cells in the last columns.
    """
    first, _ = rows[0]
    tasks = list(first.y)
    averages = {"macro": MACRO, "micro": MICRO} if len(tasks) > 1 else {tasks[0]: tasks[0]}
    with_gains = any(contrast.gains is not None for contrast, _ in rows)
    titles = [*averages, title_of_gain(comparison.outcome)] if with_gains else [*averages]

    def levels(contrast: Contrast, arm: int) -> list[str]:
        """Return the means of the first (0) or second arm (1), and its gain over the base."""
        cells = [contrast.outcome.level(contrast.means[name][arm]) for name in averages.values()]
        if with_gains:
            gains = contrast.gains or (None, None)
            cells.append(gain_in_words(gains[arm], contrast.outcome))
        return cells

    table = [[columns[0], "seeds", *titles, "difference", *columns[1:]]]
    for before in dict.fromkeys(contrast.before for contrast, _ in rows):
        together = [row for row in rows if row[0].before == before]
        most, _ = max(together, key=lambda row: row[0].seeds)
        runs = next(len(arm.runs) for arm in comparison.arms if arm.name == before)
        table.append([before, str(min(runs, len(most.y[tasks[0]][0]))), *levels(most, 0), *[""] * len(columns)])
        for contrast, last in together:
            difference = contrast.outcome.change(contrast.effects[MACRO].difference)
            table.append([contrast.after, str(len(contrast.y[tasks[0]][1])), *levels(contrast, 1), difference, *last])
    return table


def probability(p: float) -> str:
    """Return p with three digits after the point."""
    return "<.001" if p < 0.0005 else f"{p:.3f}".replace("0.", ".", 1)
