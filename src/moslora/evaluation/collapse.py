"""Signs that a model answers without reading."""

from collections.abc import Mapping
from statistics import fmean

from moslora.evaluation.percent import percent
from moslora.evaluation.scores import Score

NEARLY_ALL = 0.95
"""Share of one answer from which a model counts as collapsed, and of texts with an answer below which it does."""

LEVEL = 0.01
"""Of the one-sided test that a task is below its majority class."""

FEWEST = 10
"""Independent questions of a task below which such a sign would be a matter of chance."""


def signs_of_collapse(tasks: Mapping[str, Score], *, primary: str) -> list[str]:
    """A line for each kind of sign, with the tasks: a task below its majority class by `below_majority`, not an
    average, as each task's majority class was chosen by these questions; one answer for nearly everything, where it is
    not right for nearly everything; few written texts with an answer, on average over the tasks that have texts.

    Args:
        tasks: their scores.
        primary: the metric that counts.
    """
    below = []
    same = []
    for name, score in tasks.items():
        if (score.clusters or score.n) < FEWEST:
            continue
        if score.below_majority is not None and score.below_majority <= LEVEL:
            value, _ = score.value(primary)
            below.append(f"{name} {percent(value)} against {percent(score.majority_class)}")
        # The accuracy that one answer to everything has: in words, where nobody knows it, at most the accuracy itself.
        best = score.accuracy if score.majority_class is None else score.majority_class
        if score.same_answer is not None and score.same_answer >= NEARLY_ALL > best:
            same.append(f"{name} {percent(score.same_answer)} %")
    lines = []
    if below:
        lines.append(f"below the majority class ({100 * LEVEL:g} %, one-sided): {', '.join(below)}")
    if same:
        lines.append(f"one answer for nearly everything: {', '.join(same)}")
    parse_rates = [score.parse_rate for score in tasks.values() if score.parse_rate is not None]
    if parse_rates and fmean(parse_rates) < NEARLY_ALL:
        lines.append(f"only {percent(fmean(parse_rates))} % of the texts have an answer")
    return lines
