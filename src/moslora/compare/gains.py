"""What runs gained over their base, whose answers to the same questions may lie beside theirs."""

from collections.abc import Sequence

import numpy as np

from moslora.compare.arms import cluster_codes
from moslora.compare.comparable import is_base_of
from moslora.compare.statistics import Effect, effects
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import Outcome
from moslora.runs.scores import MACRO


def shared_base(runs: Sequence[Evaluation]) -> Evaluation | None:
    """The base's answers to the questions of these runs, which all have the same; in the order of their ids. ``None``
    if there are none, if the runs have several bases, or if these were asked in another way. They lie beside the
    answers of one of the runs, where `moslora eval RUN --base` writes them, or in the same table."""
    for run in runs:
        if run.base is None:
            continue
        base = run.base.only({task: answers.ids for task, answers in run.tasks.items()})
        if is_base_of(base, [run, *runs]):
            return base
    return None


def gain_of(runs: Sequence[Evaluation], base: Evaluation, outcome: Outcome) -> Effect | None:
    """The outcome of an arm's runs minus their base's, on average over the tasks; ``None`` if the base, or one of the
    runs, does not have it of the same questions, or if these are one cluster. The questions of all are in the order of
    their ids."""
    differences = {}
    for task, of_base in base.tasks.items():
        column = of_base.outcomes.get(outcome.name)
        if not column:
            continue
        answers = [run.tasks[task] for run in runs if task in run.tasks]
        alike = [its for its in answers if its.ids == of_base.ids and its.cluster_count > 1]
        columns = [its.outcomes[outcome.name] for its in alike if outcome.name in its.outcomes]
        if not runs or len(columns) < len(runs):
            return None
        differences[task] = np.array(columns) - np.array(column)
    if not differences:
        return None
    return effects(differences, binary=outcome.binary, clusters=cluster_codes(runs))[MACRO]


def title_of_gain(outcome: Outcome) -> str:
    """The title of a column of gains: a rise is a gain, or where lower is better a change."""
    if outcome.direction < 0:
        return "change from base, 95 % interval"
    return "gain over base, 95 % interval"


def gain_in_words(gain: Effect | None, outcome: Outcome) -> str:
    """A gain with its interval, ``+0.0280 (+0.0190 to +0.0370)``; empty if it is not known."""
    if gain is None:
        return ""
    return f"{outcome.change(gain.difference)} ({outcome.range(gain.interval)})"
