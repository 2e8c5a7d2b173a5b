"""Signs that a model answers without reading."""

from collections.abc import Mapping

from moslora.evaluation.percent import percent
from moslora.evaluation.scores import Score

NEARLY_ALL = 0.95
"""Share of one answer from which a model counts as collapsed, and of texts with an answer below which it does."""

LEVEL = 0.01
"""Of the one-sided test that a task is below its majority class."""

FEWEST = 10
"""Questions of a task below which such a sign would be a matter of chance."""


def signs_of_collapse(tasks: Mapping[str, Score], *, primary: str, parse_rate: float | None) -> list[str]:
    """A line for each kind of sign, with the tasks: a task below its majority class by `below_majority`, not an
    average, as each task's majority class was chosen by these questions; one answer for nearly everything, where it is
    not right for nearly everything; few texts with an answer.

    Args:
        tasks: their scores.
        primary: the metric that counts.
        parse_rate: share of generated texts with an answer; ``None`` if none were generated.
    """
    below = []
    same = []
    for name, score in tasks.items():
        if score.n < FEWEST:
            continue
        if score.below_majority is not None and score.below_majority <= LEVEL:
            value, _ = score.value(primary)
            below.append(f"{name} {percent(value)} against {percent(score.majority_class)}")
        if score.same_answer is not None and score.same_answer >= NEARLY_ALL > score.majority_class:
            same.append(f"{name} {percent(score.same_answer)} %")
    lines = []
    if below:
        lines.append(f"below the majority class ({100 * LEVEL:g} %, one-sided): {', '.join(below)}")
    if same:
        lines.append(f"one answer for nearly everything: {', '.join(same)}")
    if parse_rate is not None and parse_rate < NEARLY_ALL:
        lines.append(f"only {percent(parse_rate)} % of the texts have an answer")
    return lines
