"""A comparison in words: what it shows, with its size; and what it does not show, where a reader might think so."""

from collections import defaultdict
from collections.abc import Iterator
from math import isfinite
from statistics import fmean

from moslora.compare.comparison import Comparison
from moslora.compare.contrast import Contrast
from moslora.compare.display import members_of, probability
from moslora.compare.equality import equivalence_interval_in_words, equivalence_title, in_words, size_in_words
from moslora.compare.gains import gain_in_words, title_of_gain
from moslora.compare.margin import Margin
from moslora.compare.statistics import LEVEL, Member
from moslora.errors import counted
from moslora.runs.intervals import FEWEST_FOR_PERCENT
from moslora.runs.scores import MACRO, MICRO

HANDFUL = 30
"""Where a task has fewer independent questions, what is shown at a p above `SURE` hangs on one or two of them."""

SURE = 0.01

TOO_FEW = "too few"
EQUAL = "equal"
SIDES = ("better", "worse", "higher", "lower")
"""Verdicts on a contrast; of `SIDES` the first two where it is known which numbers are better. The last one is open."""


def lines(comparison: Comparison) -> list[str]:
    """The lines below the tables, the conclusions last."""
    return [*remarks(comparison), *conclusions(comparison)]


def remarks(comparison: Comparison) -> Iterator[str]:
    """What the numbers of the tables are, and what else was asked."""
    yield from comparison.left_out
    named = comparison.named
    main = comparison.main
    if not named:
        names = ",".join(arm.name for arm in comparison.arms[:2])
        yield (
            f"No contrast was named beforehand (--contrast {names}): all of this is exploratory, and shows at best what"
            " is worth an experiment of its own."
        )
    elif main is None:
        yield (
            f"{comparison.count} contrasts named beforehand, {len(named)} with runs: the joint intervals hold for all"
            " at once (Bonferroni); p by Holm, of a difference of"
            f" {size_in_words(comparison.margin, comparison.outcome)} or more (equal), and of none (different); another"
            " --outcome is a family of its own"
        )
    elif main.gains is not None:
        of_before, of_after = [gain_in_words(gain, main.outcome) for gain in main.gains]
        yield f"{title_of_gain(main.outcome)}: {main.before} {of_before}, {main.after} {of_after}"
    low = [one for one in named if one.majority and not _are_few(one) and one.over_majority.interval[0] <= 0]
    if main is not None and low:
        share = main.outcome.level(fmean(labels.mean() for labels in main.majority.values()))
        interval = " to ".join(map(main.outcome.level, main.over_majority.interval))
        yield f"{main.after} is not shown to be above the majority class ({share} %): {interval} points"
    elif low:
        yield f"not shown to be above the majority class: {', '.join(one.after for one in low)}"


def conclusions(comparison: Comparison) -> list[str]:
    """A sentence on the one contrast that was named. Of a family, one on each difference, one on the arms that are
    equal, and one on those that are open."""
    main = comparison.main
    if main is not None:
        return [f"{'. '.join([_of_contrast(main, comparison), *_risks(main)])}."]
    return [f"{sentence}." for sentence in _of_family(comparison)]


def verdict_on(one: Contrast, member: Member) -> str:
    """What is concluded of one contrast: that the second arm is on one of `SIDES`, equality, or nothing."""
    if _are_few(one):
        return TOO_FEW
    if member.different <= LEVEL:
        return one.outcome.side(one.effects[MACRO].difference)
    return EQUAL if member.equal <= LEVEL else "open"


def _of_contrast(main: Contrast, comparison: Comparison) -> str:
    ((_, member),) = members_of(comparison)
    outcome = main.outcome
    margin = comparison.margin
    effect = main.effects[MACRO]
    verdict = verdict_on(main, member)
    if verdict == TOO_FEW:
        few = counted(sum(main.independent_questions.values()), "independent question")
        asked = main.questions()
        before, after = (f"{mean * asked:.3g}" for mean in main.means[MICRO])
        return f"{few}: too few to tell {main.after} from {main.before} ({after} against {before} right of {asked})"
    if verdict in SIDES:
        over = f"95 % over {main.seeds} seeds" if main.seeds > 1 else "95 %"
        return _difference(main, member, margin, over, f", p {probability(effect.p)}")
    if verdict == EQUAL:
        equivalence_interval = f"{equivalence_title(margin)} {equivalence_interval_in_words(main, margin)}"
        return f"{main.after} and {main.before} are equal within {in_words(main, margin)} ({equivalence_interval})"
    sentence = f"No difference between {main.after} and {main.before} is shown over {_asked(main)}"
    if comparison.own_margin:
        sentence += f", nor equality within {in_words(main, margin)}"
    detectable = f"{outcome.size(effect.detectable)} would have been found"
    if effect.detectable > effect.distribution.most:
        detectable = "so few questions find none of any size"
    low, high = effect.interval
    between = f"between {outcome.amount(low)} {outcome.side(low)} and {outcome.size(abs(high))} {outcome.side(high)}"
    return f"{sentence}: {between}; {detectable}"


def _are_few(one: Contrast) -> bool:
    """Whether there are too few answers to conclude anything: McNemar's exact p is not small enough before six of them
    have changed, all in one direction."""
    return one.outcome.binary and sum(one.independent_questions.values()) < FEWEST_FOR_PERCENT


def _difference(one: Contrast, member: Member, margin: Margin, over: str, more: str = "") -> str:
    """By how much, and in what, the second arm differs from the first, though within the margin; ``over`` says what the
    interval is."""
    outcome = one.outcome
    size = one.effects[MACRO].difference
    rises, falls = outcome.says
    low, high = member.interval  # of several contrasts with 0 in it where Holm's p are the sharper ones
    if size < 0:
        low, high = -high, -low
    verb = falls if size < 0 else rises
    said = verb.format(size=outcome.amount(size), before=one.before, questions=_asked(one))
    small = f", which is less than {in_words(one, margin)}" if member.equal <= LEVEL else ""
    return f"{one.after} {said} ({over}: {outcome.size(low)} to {outcome.size(high)}{more}){small}"


def _asked(one: Contrast) -> str:
    if one.outcome.of_runs:
        return counted(one.seeds, "seed")
    asked = counted(one.questions(), "text" if one.outcome.of_texts else "question")
    return f"{asked} in {len(one.y)} tasks" if len(one.y) > 1 else asked


def _risks(main: Contrast) -> Iterator[str]:
    """What a reader might think is shown, and is not."""
    effect = main.effects[MACRO]
    if main.seeds == 1 and main.trained_here:
        yield "These are two runs: to compare methods, train several seeds"
    fewest = min(main.independent_questions.values())
    if effect.is_shown and effect.p > SURE and fewest < HANDFUL and not (main.outcome.of_runs or _are_few(main)):
        where = " in the smallest task" if len(main.y) > 1 else ""
        yield f"Fragile: {counted(fewest, 'independent question')}{where}, of which one or two may have decided"


def _of_family(comparison: Comparison) -> Iterator[str]:
    margin = comparison.margin
    arms_by_conclusion: dict[str, list[str]] = defaultdict(list)
    for one, member in members_of(comparison):
        verdict = verdict_on(one, member)
        if verdict == TOO_FEW:
            arms_by_conclusion[f"Too few questions to tell from {one.before}"].append(one.after)
        elif verdict in SIDES:
            yield _difference(one, member, margin, "joint 95 %")
        elif verdict == EQUAL:
            arms_by_conclusion[f"Equal to {one.before} within {in_words(one, margin)}"].append(one.after)
        else:
            between = one.outcome.range(member.interval) if isfinite(member.interval[0]) else "one seed"
            arms_by_conclusion[f"No difference from {one.before} is shown"].append(f"{one.after} ({between})")
    for concluded, arms in arms_by_conclusion.items():
        yield f"{concluded}: {', '.join(arms)}"
