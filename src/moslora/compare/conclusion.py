"""A comparison as tables and in words: what can be concluded, and what cannot."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import isfinite
from statistics import fmean

from moslora.compare.comparison import Comparison
from moslora.compare.contrast import Contrast
from moslora.compare.equality import (
    are_equal,
    in_words,
    inner_in_words,
    p_unequal,
    size_in_words,
    title_of_inner,
)
from moslora.compare.gains import gain_in_words, title_of_gain
from moslora.compare.margin import Margin
from moslora.compare.statistics import LEVEL, MACRO, MICRO, Member, family_with, holm
from moslora.errors import counted

SCOPE_OF_METHODS = "this base, rows like these, these steps and learning rates"
"""What a comparison of several seeds is about: each seed may draw rows of its own."""


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
    inner_title = title_of_inner(comparison.margin, comparison.unit)
    columns = ("arm", "joint 95 % interval", "p (different)", inner_title, "p (equal)")
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
    tasks = list(contrast.y)
    adjusted = holm([contrast.effects[task].p for task in tasks])
    rows = [_row_of_task(contrast, task, p) for task, p in zip(tasks, adjusted, strict=True)]
    if len(tasks) > 1:
        rows += [_row_of_average(contrast, name) for name in (MACRO, MICRO)]
    return [columns, *rows]


def _row_of_task(contrast: Contrast, task: str, adjusted: float) -> list[str]:
    cells = [task, f"{contrast.questions(task):,}"]
    if contrast.majority:
        cells.append(contrast.unit.level(contrast.majority[task].mean()))
    return [*cells, *_levels_and_difference(contrast, task), probability(adjusted)]


def _row_of_average(contrast: Contrast, name: str) -> list[str]:
    """A row without a majority class and an adjusted p, which only a task has."""
    cells = [name, f"{contrast.questions():,}"]
    if contrast.majority:
        cells.append("")
    return [*cells, *_levels_and_difference(contrast, name), ""]


def _levels_and_difference(contrast: Contrast, name: str) -> list[str]:
    unit = contrast.unit
    before, after = contrast.means[name]
    effect = contrast.effects[name]
    return [unit.level(before), unit.level(after), unit.change(effect.difference), unit.range(effect.interval)]


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
        rows.append([before, str(min(runs, _runs(most, 0))), *levels, *[""] * len(columns)])
        for contrast, cells in together:
            levels = _levels(contrast, 1, averages.values(), with_gain=with_gains)
            difference = contrast.unit.change(contrast.effects[MACRO].difference)
            rows.append([contrast.after, str(_runs(contrast, 1)), *levels, difference, *cells])
    return rows


def _runs(contrast: Contrast, arm: int) -> int:
    """Number of runs of the first (0) or the second arm (1); of an untrained model as many as it is held against."""
    y, *_ = contrast.y.values()
    return len(y[arm])


def _levels(contrast: Contrast, arm: int, averages: Iterable[str], *, with_gain: bool) -> list[str]:
    """The means of the first (0) or the second arm (1), and ``with_gain`` what it gained over the base."""
    cells = [contrast.unit.level(contrast.means[name][arm]) for name in averages]
    if not with_gain:
        return cells
    if contrast.gains is None:
        return [*cells, ""]
    return [*cells, gain_in_words(contrast.gains[arm], contrast.unit)]


def lines(comparison: Comparison) -> list[str]:
    """The lines below the tables, the conclusions last."""
    found = []
    if comparison.questions:
        found.append(comparison.questions)
    if not comparison.named:
        found.append(_not_named(comparison))
        return found
    if comparison.main is None:
        found += _about_family(comparison)
    else:
        found += _about_contrast(comparison.main, comparison.margin)
    return found


def _not_named(comparison: Comparison) -> str:
    names = ",".join(arm.name for arm in comparison.arms[:2])
    return (
        f"No contrast was named beforehand (--contrast {names}): all of this is exploratory, and shows at best what"
        " is worth an experiment of its own."
    )


def _about_contrast(main: Contrast, margin: Margin) -> list[str]:
    """The lines about the one contrast that was named, with the conclusion."""
    unit = main.unit
    effect = main.effects[MACRO]
    found = [
        f"{main.after} against {main.before}: {unit.change(effect.difference)} {unit.unit}, 95 % interval over"
        f" {_drawn([main])} {unit.range(effect.interval)}, {_p_in_words(effect.p)}"
    ]
    if main.gains is not None:
        of_before, of_after = [gain_in_words(gain, unit) for gain in main.gains]
        found.append(f"{title_of_gain(unit)}: {main.before} {of_before}, {main.after} {of_after}")
    if margin.known:
        found.append(_equality(main, margin))
    smallest = unit.change(effect.detectable).lstrip("+")
    found.append(f"smallest detectable difference: about {smallest} {unit.unit} (found in 4 of 5 such comparisons)")
    if main.majority:
        found.append(_over_majority(main))
    found.append(conclusion(main, margin=margin))
    return found


def _equality(main: Contrast, margin: Margin) -> str:
    """Whether the arms are equal within the margin, and the interval that tells."""
    equal = "not shown"
    if are_equal(main, margin):
        equal = "yes"
    found = f"equal within ±{in_words(main, margin)}: {equal}"
    inner = inner_in_words(main, margin)
    if not inner:
        return f"{found} (nor is the gain)"
    return f"{found} ({title_of_inner(margin, main.unit)} {inner})"


def _drawn(contrasts: Sequence[Contrast]) -> str:
    """What the intervals are over: what might have been drawn otherwise."""
    if contrasts[0].unit.of_runs:
        return "seeds"
    if not contrasts[0].paired:
        return "seeds (not paired) and questions"
    if max(one.seeds for one in contrasts) == 1:
        return "questions"
    return "seeds and questions"


def _p_in_words(p: float) -> str:
    text = probability(p)
    if text.startswith("<"):
        return f"p < {text[1:]}"
    return f"p = {text}"


def _over_majority(main: Contrast) -> str:
    """Whether the second arm is better than always giving the most frequent label."""
    unit = main.unit
    over = main.over_majority
    share = unit.level(fmean(labels.mean() for labels in main.majority.values()))
    low, high = (unit.level(end) for end in over.interval)
    by = f"{unit.factor * over.difference:+.{unit.digits}f} {unit.unit}, {low} to {high}"
    if over.interval[0] > 0:
        return f"{main.after} is above the majority class ({share} %): {by}"
    found = f"{main.after} is not shown to be above the majority class ({share} %): {by}"
    if over.difference > 0:
        found += f"; {counted(main.questions(), 'question')} are too few"
    return found


def _about_family(comparison: Comparison) -> Iterator[str]:
    """What the numbers of the table are; which arms are equal, which differ, and which remain open."""
    named = comparison.named
    margin = comparison.margin
    yield (
        f"{comparison.count} contrasts named beforehand, {len(named)} with runs: the joint intervals hold for all at"
        f" once (Bonferroni); p by Holm, of a difference of {size_in_words(margin, comparison.unit)} or more (equal),"
        " and of none (different); another --outcome is a family of its own"
    )
    low = [one.after for one in named if one.majority and one.over_majority.interval[0] <= 0]
    if low:
        yield f"not shown to be above the majority class: {', '.join(low)}"
    most_seeds = max(one.seeds for one in named)
    alone = [one.after for one in named if one.seeds == 1 < most_seeds]
    if alone:
        yield f"one seed, where others have several, shows nothing of methods (p = 1): {', '.join(alone)}"
    scope = "these models"
    if most_seeds > 1:
        scope = SCOPE_OF_METHODS
    yield f"intervals are over {_drawn(named)}; what is concluded holds for {scope}, and no others"
    arms_by_conclusion: dict[str, list[str]] = defaultdict(list)
    for one, member in members_of(comparison):
        for concluded in _concluded_of_member(one, member, margin=margin):
            arms_by_conclusion[concluded].append(one.after)
    for concluded, arms in arms_by_conclusion.items():
        yield f"Conclusion: {concluded}: {', '.join(arms)}"


def _concluded_of_member(one: Contrast, member: Member, *, margin: Margin) -> list[str]:
    """What can be concluded of a contrast of a family: equality, a difference, both, or neither."""
    found = []
    if member.equal <= LEVEL:
        found.append(f"each is equal to {one.before} within ±{in_words(one, margin)}")
    if member.different <= LEVEL:
        found.append(f"each {_direction(one)} {one.before}")
    if not found:
        found.append(f"neither a difference from {one.before} nor equality is shown")
    return found


def _direction(one: Contrast) -> str:
    """What the sign of the difference says of the second arm, such as ``is above``."""
    rises, falls = one.unit.says
    if one.effects[MACRO].difference > 0:
        return rises
    return falls


def conclusion(main: Contrast, *, margin: Margin) -> str:
    """One sentence: what can be concluded, and what cannot."""
    return f"Conclusion: {_can_be_concluded(main, margin)}; {_cannot_be_concluded(main, margin)}."


def _can_be_concluded(main: Contrast, margin: Margin) -> str:
    is_it = f"{main.after} {_direction(main)} {main.before}"
    shown = main.effects[MACRO].shown
    if not margin.known and shown:
        return is_it
    if not margin.known:
        return f"no difference between {main.after} and {main.before} is shown"
    size = in_words(main, margin)
    equal = are_equal(main, margin)
    if shown and equal:
        return f"{is_it}, though by less than {size}"
    if shown:
        return is_it
    if equal:
        return f"{main.after} and {main.before} are equal within ±{size}"
    return f"neither a difference between {main.after} and {main.before} nor their equality within ±{size} is shown"


def _cannot_be_concluded(main: Contrast, margin: Margin) -> str:
    unit = main.unit
    effect = main.effects[MACRO]
    if main.seeds == 1:
        return "this compares two models: to compare methods, train several seeds"
    if effect.shown or are_equal(main, margin):
        return f"it holds for {SCOPE_OF_METHODS}, and no others"
    return f"a difference below {unit.level(effect.detectable)} {unit.unit} may well have been missed"


def probability(p: float) -> str:
    """p with three digits after the point."""
    if p < 0.0005:
        return "<.001"
    return f"{p:.3f}".replace("0.", ".", 1)
