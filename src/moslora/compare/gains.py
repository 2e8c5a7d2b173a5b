"""Gains of runs over their base, from its answers to the same questions."""

from collections.abc import Sequence

import numpy as np

from moslora.compare.arms import cluster_codes
from moslora.compare.comparable import is_base_of
from moslora.compare.statistics import Effect, effects
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import Outcome
from moslora.runs.scores import MACRO


def shared_base(runs: Sequence[Evaluation]) -> Evaluation | None:
    """Return the base's answers to the questions of these runs, in the order of their ids; ``None`` without them.

    `moslora eval RUN --base` writes them beside the answers of a run; they may also be in the experiment's tables. They
    do not count if the runs have several bases, or if the base was asked in another way.

    Args:
        runs: answers to the same questions.
    """
    for run in runs:
        if run.base is None:
            continue
        base = run.base.only({task: answers.ids for task, answers in run.tasks.items()})
        if is_base_of(base, [run, *runs]):
            return base
    return None


def gain_of(runs: Sequence[Evaluation], base: Evaluation, outcome: Outcome) -> Effect | None:
    """Return the outcome of an arm's runs minus their base's, macro average; ``None`` if it is not known.

    It is not known if the base or a run lacks the outcome for the same questions, or if these are a single cluster.

    Args:
        runs: answers of the arm's runs, in the order of the questions' ids.
        base: answers of their base, in the same order.
        outcome: outcome of questions.
    """
    differences = {}
    for task, base_answers in base.tasks.items():
        base_column = base_answers.outcomes.get(outcome.name)
        if not base_column:
            continue
        tables = [run.tasks[task] for run in runs if task in run.tasks]
        comparable = [table for table in tables if table.ids == base_answers.ids and table.cluster_count > 1]
        columns = [table.outcomes[outcome.name] for table in comparable if outcome.name in table.outcomes]
        if not runs or len(columns) < len(runs):
            return None
        differences[task] = np.array(columns) - np.array(base_column)
    if not differences:
        return None
    return effects(differences, binary=outcome.binary, clusters=cluster_codes(runs))[MACRO]


def title_of_gain(outcome: Outcome) -> str:
    """Return the title of a column of gains, or of changes where lower is better."""
    if outcome.direction < 0:
        return "change from base, 95 % interval"
    return "gain over base, 95 % interval"


def gain_in_words(gain: Effect | None, outcome: Outcome) -> str:
    """Return a gain with its interval, ``+0.0280 (+0.0190 to +0.0370)``; empty if it is not known."""
    if gain is None:
        return ""
    return f"{outcome.change(gain.difference)} ({outcome.range(gain.interval)})"
