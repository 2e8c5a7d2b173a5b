"""A comparison in sentences: what it shows, by how much, and what a reader might wrongly conclude from it.

The numbers behind them are in `moslora.compare.contrast` and `moslora.compare.equality`.
"""

from collections import defaultdict
from collections.abc import Iterator
from math import isfinite
from statistics import fmean

from moslora.compare.comparison import Comparison
from moslora.compare.contrast import Contrast
from moslora.compare.display import members_of, probability
from moslora.compare.equality import equivalence_interval_in_words, equivalence_title, margin_in_words, size_in_words
from moslora.compare.gains import gain_in_words, title_of_gain
from moslora.compare.margin import Margin
from moslora.compare.statistics import LEVEL, Member
from moslora.errors import counted
from moslora.runs.intervals import FEWEST_FOR_PERCENT
from moslora.runs.scores import MACRO, MICRO

HANDFUL = 30
"""Number of independent questions of a task below which a difference may depend on one or two of them."""

SURE = 0.01
"""p up to which a difference does not count as fragile, whatever the number of questions."""

TOO_FEW = "too few"
EQUAL = "equal"
SIDES = ("better", "worse", "higher", "lower")
"""Verdicts on a contrast, besides "open". The last two of `SIDES` are for outcomes without a known direction."""


def lines(comparison: Comparison) -> list[str]:
    """Return the lines below the tables, the conclusions last."""
    return [*remarks(comparison), *conclusions(comparison)]


def remarks(comparison: Comparison) -> Iterator[str]:
    """Yield remarks on the tables: what was left out, what the intervals are, and arms not shown to be above the
    majority class."""
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
    low = [each for each in named if each.majority and not _are_few(each) and each.over_majority.interval[0] <= 0]
    if main is not None and low:
        share = main.outcome.level(fmean(labels.mean() for labels in main.majority.values()))
        interval = " to ".join(map(main.outcome.level, main.over_majority.interval))
        yield f"{main.after} is not shown to be above the majority class ({share} %): {interval} points"
    elif low:
        yield f"not shown to be above the majority class: {', '.join(each.after for each in low)}"


def conclusions(comparison: Comparison) -> list[str]:
    """Return the conclusions as sentences: one for a single contrast.

    For a family of contrasts: one for each difference, one for the arms that are equal, and one for open contrasts.
    """
    main = comparison.main
    if main is not None:
        return [f"{'. '.join([_sentence_on(main, comparison), *_risks(main)])}."]
    return [f"{sentence}." for sentence in _sentences_on_family(comparison)]


def verdict_on(contrast: Contrast, member: Member) -> str:
    """Return the verdict on a contrast: the one of `SIDES` that its second arm is, or `EQUAL`, `TOO_FEW` or "open"."""
    if _are_few(contrast):
        return TOO_FEW
    if member.different <= LEVEL:
        return contrast.outcome.side(contrast.effects[MACRO].difference)
    return EQUAL if member.equal <= LEVEL else "open"


def _sentence_on(main: Contrast, comparison: Comparison) -> str:
    """Return the conclusion on the only named contrast."""
    ((_, member),) = members_of(comparison)
    outcome = main.outcome
    margin = comparison.margin
    effect = main.effects[MACRO]
    verdict = verdict_on(main, member)
    if verdict == TOO_FEW:
        few = counted(sum(main.independent_questions.values()), "independent question")
        count = main.questions()
        before, after = (f"{mean * count:.3g}" for mean in main.means[MICRO])
        return f"{few}: too few to tell {main.after} from {main.before} ({after} against {before} right of {count})"
    if verdict in SIDES:
        over = f"95 % over {main.seeds} seeds" if main.seeds > 1 else "95 %"
        return _difference(main, member, margin, over, f", p {probability(effect.p)}")
    if verdict == EQUAL:
        interval = f"{equivalence_title(margin)} {equivalence_interval_in_words(main, margin)}"
        return f"{main.after} and {main.before} are equal within {margin_in_words(main, margin)} ({interval})"
    sentence = f"No difference between {main.after} and {main.before} is shown over {_scope(main)}"
    if comparison.own_margin:
        sentence += f", nor equality within {margin_in_words(main, margin)}"
    detectable = f"{outcome.size(effect.detectable)} would have been found"
    if effect.detectable > effect.distribution.most:
        detectable = "so few questions find none of any size"
    low, high = effect.interval
    between = f"between {outcome.amount(low)} {outcome.side(low)} and {outcome.size(abs(high))} {outcome.side(high)}"
    return f"{sentence}: {between}; {detectable}"


def _are_few(contrast: Contrast) -> bool:
    """Whether there are too few questions for a conclusion on accuracy.

    McNemar's exact p is below `LEVEL` only once six answers have changed, all in one direction.
    """
    return contrast.outcome.binary and sum(contrast.independent_questions.values()) < FEWEST_FOR_PERCENT


def _difference(contrast: Contrast, member: Member, margin: Margin, interval_title: str, p: str = "") -> str:
    """Return a sentence on a difference that is shown: its size, its interval, and whether it is within the margin.

    Args:
        contrast: contrast of two arms.
        member: interval and p values of the contrast in its family.
        margin: largest negligible difference.
        interval_title: title of the interval.
        p: text with p, which follows the interval.
    """
    outcome = contrast.outcome
    size = contrast.effects[MACRO].difference
    rises, falls = outcome.says
    low, high = member.interval  # in a family it may contain 0, as Holm's p is sharper than Bonferroni's interval
    if size < 0:
        low, high = -high, -low
    verb = falls if size < 0 else rises
    sentence = verb.format(size=outcome.amount(size), before=contrast.before, questions=_scope(contrast))
    small = f", which is less than {margin_in_words(contrast, margin)}" if member.equal <= LEVEL else ""
    return f"{contrast.after} {sentence} ({interval_title}: {outcome.size(low)} to {outcome.size(high)}{p}){small}"


def _scope(contrast: Contrast) -> str:
    """Return the number of questions, texts or seeds that a contrast is over."""
    if contrast.outcome.of_runs:
        return counted(contrast.seeds, "seed")
    questions = counted(contrast.questions(), "text" if contrast.outcome.of_texts else "question")
    return f"{questions} in {len(contrast.y)} tasks" if len(contrast.y) > 1 else questions


def _risks(main: Contrast) -> Iterator[str]:
    """Yield warnings on the only named contrast: two runs say nothing of methods, and few questions may decide."""
    effect = main.effects[MACRO]
    if main.seeds == 1 and main.trained_here:
        yield "These are two runs: to compare methods, train several seeds"
    fewest = min(main.independent_questions.values())
    if effect.is_shown and effect.p > SURE and fewest < HANDFUL and not (main.outcome.of_runs or _are_few(main)):
        where = " in the smallest task" if len(main.y) > 1 else ""
        yield f"Fragile: {counted(fewest, 'independent question')}{where}, of which one or two may have decided"


def _sentences_on_family(comparison: Comparison) -> Iterator[str]:
    """Yield the conclusions on several named contrasts."""
    margin = comparison.margin
    arms_by_conclusion: dict[str, list[str]] = defaultdict(list)
    for contrast, member in members_of(comparison):
        before, after = contrast.before, contrast.after
        verdict = verdict_on(contrast, member)
        if verdict == TOO_FEW:
            arms_by_conclusion[f"Too few questions to tell from {before}"].append(after)
        elif verdict in SIDES:
            yield _difference(contrast, member, margin, "joint 95 %")
        elif verdict == EQUAL:
            arms_by_conclusion[f"Equal to {before} within {margin_in_words(contrast, margin)}"].append(after)
        else:
            interval = contrast.outcome.range(member.interval) if isfinite(member.interval[0]) else "one seed"
            arms_by_conclusion[f"No difference from {before} is shown"].append(f"{after} ({interval})")
    for conclusion, arms in arms_by_conclusion.items():
        yield f"{conclusion}: {', '.join(arms)}"
