"""A comparison as tables and in words: what can be concluded, and what cannot."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from math import inf

from moslora.compare.comparison import Comparison, Contrast
from moslora.compare.statistics import EXACT_FLIPS, LEVEL, MACRO, MICRO, Member, family, holm, smallest_p
from moslora.errors import counted


def tables(comparison: Comparison, *, margin: float | None = None) -> list[list[list[str]]]:
    """The family, if several contrasts were named; or all arms, if more than two, and the one contrast that was named.
    ``margin`` in the unit of the outcome."""
    main = comparison.main
    if comparison.named and not main:
        columns = "arm", "joint 95 % interval", "p (equal)", "p (different)"
        known = [(one, one.unit.range(i) if i[0] > -inf else "", p) for one, (i, *p) in _family(comparison, margin)]
        return [_by_arm(comparison, columns, [(one, [i, *map(probability, p)]) for one, i, p in known])]
    effects = [(one, one.effects[MACRO]) for one in comparison.exploratory]
    found = [(one, [one.unit.range(effect.interval), probability(effect.p)]) for one, effect in effects]
    all_arms = [_by_arm(comparison, ("arm (exploratory)", "95 % interval", "p"), found)] if found else []
    return [*all_arms, *([_of_contrast(main)] if main else [])]


def _family(comparison: Comparison, margin: float | None) -> Iterator[tuple[Contrast, Member]]:
    named, unit = comparison.named, comparison.named[0].unit
    margin = (unit.margin if margin is None else margin) / unit.factor
    return zip(named, family([c.effects[MACRO] for c in named], margin=margin, count=comparison.count), strict=True)


def _of_contrast(contrast: Contrast) -> list[list[str]]:
    """A row per task and average: both arms, their difference, and with one run each p, by Holm over the tasks."""
    unit, tasks = contrast.unit, list(contrast.y)
    averages = (MACRO, MICRO) if len(tasks) > 1 else ()
    adjusted = dict(zip(tasks, holm([contrast.effects[task].p for task in tasks]), strict=True))
    sizes = {task: y.shape[2] for task, y in contrast.y.items()}
    columns: dict[str, Callable[[str], str]] = {"n": lambda name: f"{sizes.get(name, sum(sizes.values())):,}"}
    if contrast.majority:
        columns["majority"] = lambda name: unit.level(contrast.majority[name].mean()) if name in tasks else ""
    columns |= {
        contrast.before: lambda name: unit.level(contrast.means[name][0]),
        contrast.after: lambda name: unit.level(contrast.means[name][1]),
        "difference": lambda name: unit.change(contrast.effects[name].difference),
        "95 % interval": lambda name: unit.range(contrast.effects[name].interval),
    }
    if contrast.seeds == 1:
        columns["p (Holm)"] = lambda name: probability(adjusted[name]) if name in tasks else ""
    return [
        ["task", *columns],
        *([name, *(cell(name) for cell in columns.values())] for name in (*tasks, *averages)),
    ]


def _by_arm(comparison: Comparison, columns: Sequence[str], found: list[tuple[Contrast, list[str]]]) -> list[list[str]]:
    """A row per contrast with its last cells, below that of the arm it is against."""
    unit, tasks, runs = found[0][0].unit, found[0][0].y, {arm.name: len(arm.runs) for arm in comparison.arms}
    averages = {"macro": MACRO, "micro": MICRO} if len(tasks) > 1 else {task: task for task in tasks}
    rows, before = [[columns[0], "seeds", *averages, "difference", *columns[1:]]], ""
    for one, cells in found:
        if one.before != before:
            before = one.before
            most = max((other for other, _ in found if other.before == before), key=lambda other: other.seeds)
            levels = (unit.level(most.means[name][0]) for name in averages.values())
            rows.append([before, str(min(runs[before], most.seeds)), *levels, *("" for _ in columns)])
        levels = (unit.level(one.means[name][1]) for name in averages.values())
        rows.append([one.after, str(one.seeds), *levels, unit.change(one.effects[MACRO].difference), *cells])
    return rows


def lines(comparison: Comparison, *, margin: float | None = None) -> list[str]:
    """The lines below the tables, the conclusions last; ``margin`` in the unit of the outcome."""
    main, questions = comparison.main, [comparison.questions] if comparison.questions else []
    if not comparison.named:
        names = ",".join(arm.name for arm in comparison.arms[:2])
        return [
            *questions,
            f"No contrast was named beforehand (--contrast {names}): all of this is exploratory, and shows at best what"
            " is worth an experiment of its own.",
        ]
    unit = comparison.named[0].unit
    margin = unit.margin if margin is None else margin
    if main is None:
        return [*questions, *_about_family(comparison, margin)]
    effect = main.effects[MACRO]
    p = probability(effect.p)
    p = f"p < {p[1:]}" if p.startswith("<") else f"p = {p}"
    exact = "all" if main.seeds <= EXACT_FLIPS else "sampled"
    how = "sign flips over the questions" if main.seeds == 1 else f"{exact} sign flips over {main.seeds} seeds"
    equal = "yes" if effect.equivalent(margin / unit.factor) else "not shown"
    smallest = f"none, as p cannot be below {smallest_p(main.seeds):g}"
    if effect.detectable is not None:
        size = unit.change(effect.detectable).lstrip("+")
        smallest = f"about {size} {unit.unit} (found in 4 of 5 such comparisons)"
    found = [
        *questions,
        f"{main.after} against {main.before}: {unit.change(effect.difference)} {unit.unit}, 95 % interval"
        f" {unit.range(effect.interval)}, {p} ({how})",
        *[f"equal within ±{margin:g} {unit.unit}: {equal} (90 % interval {unit.range(effect.inner)})"] * (margin > 0),
        f"smallest detectable difference: {smallest}",
    ]
    if main.majority:
        found.append(_over_majority(main))
    return [*found, conclusion(main, margin=margin)]


def _over_majority(main: Contrast) -> str:
    """Whether the second arm is better than always giving the most frequent label."""
    unit, over = main.unit, main.over_majority
    share = unit.level(sum(float(labels.mean()) for labels in main.majority.values()) / len(main.majority))
    low, high = (unit.level(end) for end in over.interval)
    by = f"{unit.factor * over.difference:+.{unit.digits}f} {unit.unit}, {low} to {high}"
    if over.interval[0] > 0:
        return f"{main.after} is above the majority class ({share} %): {by}"
    few = ""
    if over.difference > 0:
        few = f"; {counted(sum(y.shape[2] for y in main.y.values()), 'question')} are too few"
    return f"{main.after} is not shown to be above the majority class ({share} %): {by}{few}"


def _about_family(comparison: Comparison, margin: float) -> Iterator[str]:
    """What the numbers of the table are; which arms are equal, which differ, and which remain open."""
    named, unit = comparison.named, comparison.named[0].unit
    yield (
        f"{comparison.count} contrasts named beforehand, {len(named)} with runs: the intervals hold for all at once"
        f" (Bonferroni); p by Holm, of a difference of {margin:g} {unit.unit} or more (equal), and of none (different);"
        " another --outcome is a family of its own"
    )
    if low := [one.after for one in named if one.majority and one.over_majority.interval[0] <= 0]:
        yield f"not shown to be above the majority class: {', '.join(low)}"
    found: dict[str, list[str]] = defaultdict(list)
    if alone := [one.after for one in named if one.seeds == 1 < max(other.seeds for other in named)]:
        yield f"one seed, where others have several, shows nothing of methods (p = 1): {', '.join(alone)}"
    for one, (_, equal, different) in _family(comparison, margin):
        can = [f"each is equal to {one.before} within ±{margin:g} {unit.unit}"] * (equal <= LEVEL)
        can += [f"each {unit.says[one.effects[MACRO].difference <= 0]} {one.before}"] * (different <= LEVEL)
        for said in can or [f"neither a difference from {one.before} nor equality is shown"]:
            found[said].append(one.after)
    whom = "this base, these rows, steps and learning rates" if any(one.seeds > 1 for one in named) else "these models"
    yield f"what is concluded holds for {whom}, and no others"
    yield from (f"Conclusion: {said}: {', '.join(arms)}" for said, arms in found.items())


def conclusion(main: Contrast, *, margin: float) -> str:
    """One sentence: what can be concluded, and what cannot."""
    unit, effect = main.unit, main.effects[MACRO]
    within = f"±{margin:g} {unit.unit}"
    equal = effect.equivalent(margin / unit.factor)
    is_it = f"{main.after} {unit.says[effect.difference <= 0]} {main.before}"
    if effect.shown:
        can = is_it + f", though by less than {margin:g} {unit.unit}" * equal
    elif equal:
        can = f"{main.after} and {main.before} are equal within {within}"
    elif effect.p <= LEVEL:
        can = f"{is_it} on these questions, but perhaps not on others"
    elif margin:
        can = f"neither a difference between {main.after} and {main.before} nor their equality within {within} is shown"
    else:
        can = f"no difference between {main.after} and {main.before} is shown"
    if main.seeds == 1:
        cannot = "this is about these models: whether it is the methods or the seed takes several seeds"
    elif effect.detectable is None:
        least = smallest_p(main.seeds)
        cannot = f"{main.seeds} seeds cannot show a difference, as their p is at least {least:g}; six can"
    elif effect.shown or equal:
        cannot = "it holds for this base, these rows, steps and learning rates, and no others"
    else:
        cannot = f"a difference below {unit.level(effect.detectable)} {unit.unit} may well have been missed"
    return f"Conclusion: {can}; {cannot}."


def probability(p: float) -> str:
    """p with three digits after the point."""
    return "<.001" if p < 0.0005 else f"{p:.3f}".replace("0.", ".", 1)
