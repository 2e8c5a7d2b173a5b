"""A comparison as tables and in words: what can be concluded, and what cannot."""

from collections.abc import Callable

from moslora.compare.comparison import Comparison, Contrast
from moslora.compare.statistics import EXACT_FLIPS, LEVEL, MACRO, MICRO, holm, smallest_p


def tables(comparison: Comparison) -> list[list[list[str]]]:
    """All arms, if there are more than two; then the contrast, if there is one."""
    all_arms = [_all_arms(comparison)] if comparison.exploratory else []
    return [*all_arms, *([_of_contrast(comparison.main)] if comparison.main else [])]


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


def _all_arms(comparison: Comparison) -> list[list[str]]:
    """A row per arm: its averages, and its difference from the first."""
    first, rest, unit = comparison.arms[0], comparison.exploratory, comparison.exploratory[0].unit
    columns = {"macro": MACRO, "micro": MICRO} if len(rest[0].y) > 1 else {task: task for task in rest[0].y}
    rows = [["arm (exploratory)", "seeds", *columns, "difference", "95 % interval", "p"]]
    means = [unit.level(rest[0].means[name][0]) for name in columns.values()]
    rows.append([first.name, str(len(first.runs)), *means, "", "", ""])
    for contrast in rest:
        means, effect = [unit.level(contrast.means[name][1]) for name in columns.values()], contrast.effects[MACRO]
        found = [unit.change(effect.difference), unit.range(effect.interval), probability(effect.p)]
        rows.append([contrast.after, str(contrast.seeds), *means, *found])
    return rows


def lines(comparison: Comparison, *, margin: float | None = None) -> list[str]:
    """The lines below the tables, the conclusion last; ``margin`` in the unit of the outcome."""
    main, questions = comparison.main, [comparison.questions] if comparison.questions else []
    if main is None:
        names = ",".join(arm.name for arm in comparison.arms[:2])
        return [
            *questions,
            f"No contrast was named beforehand (--contrast {names}): all of this is exploratory, and shows at best what"
            " is worth an experiment of its own.",
        ]
    unit, effect = main.unit, main.effects[MACRO]
    margin = unit.margin if margin is None else margin
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
        over = main.over_majority
        above = "above" if over.interval[0] > 0 else "NOT above"
        by = f"{unit.change(over.difference)}, {unit.range(over.interval)}"
        found.append(f"{main.after} is {above} the majority class: {by}")
    return [*found, conclusion(main, margin=margin)]


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
