"""One arm against another: its outcomes question by question, and the effects on every task and average."""

from dataclasses import dataclass, field
from functools import cached_property
from statistics import mode

import numpy as np

from moslora.compare.arms import SEEDS, Arm, cluster_codes, pairs, pairs_by_seed, values
from moslora.compare.compared_run import evaluations_of
from moslora.compare.distribution import Floats
from moslora.compare.statistics import Codes, Effect, effects, effects_unpaired
from moslora.errors import UsageError
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import Outcome
from moslora.runs.scores import MACRO, MICRO


@dataclass(frozen=True)
class Contrast:
    """One arm against another, run by run and question by question.

    Attributes:
        seeds: pairs of runs, S; 1 for one run against one. Of arms that are not paired the smaller number of runs.
        y: task -> the outcome of both arms, of shape ``(S, n)``; if not paired, ``(S_before, n)`` and ``(S_after, n)``.
            n is 1 for an outcome of runs.
        majority: task -> the accuracy of always giving the most frequent label, shape ``(n,)``; empty if it is unknown,
            or no accuracy is compared.
        clusters: task -> the cluster of each question, shape ``(n,)``; without tasks whose questions are each alone.
        base: task -> the outcome of the base of both arms, shape ``(n,)``; empty if its answers to these questions are
            not there.
        paired: whether runs are subtracted one from one; if not, the arms' seeds are independent.
        trained_here: whether both arms were trained here.
    """

    before: str
    after: str
    outcome: Outcome
    seeds: int
    y: dict[str, tuple[Floats, Floats]]
    majority: dict[str, Floats]
    clusters: dict[str, Codes]
    base: dict[str, Floats] = field(default_factory=dict)
    paired: bool = True
    trained_here: bool = False

    @cached_property
    def effects(self) -> dict[str, Effect]:
        """Task and average -> ``after`` minus ``before``."""
        return self.effects_of(self.y)

    def questions(self, task: str | None = None) -> int:
        """Number of questions of a task, or of all for an average."""
        if task in self.y:
            return self.y[task][0].shape[1]
        return sum(before.shape[1] for before, _ in self.y.values())

    @property
    def independent_questions(self) -> dict[str, int]:
        """Task -> number of clusters; a question that is alone is one."""
        counts = {task: self.questions(task) for task in self.y}
        return counts | {task: len(np.unique(codes)) for task, codes in self.clusters.items()}

    @cached_property
    def means(self) -> dict[str, tuple[float, float]]:
        """Task and average -> the mean outcome of both arms."""
        means = np.array([[before.mean(), after.mean()] for before, after in self.y.values()])  # shape (tasks, 2)
        micro = np.average(means, axis=0, weights=[self.questions(task) for task in self.y])
        rows = [*means, means.mean(axis=0), micro]
        return {name: (float(row[0]), float(row[1])) for name, row in zip([*self.y, MACRO, MICRO], rows, strict=True)}

    @cached_property
    def gains(self) -> tuple[Effect, Effect] | None:
        """What both arms gained over their base, macro; ``None`` if its answers are not known."""
        if not self.base:
            return None
        over_base = [{task: y[arm] - self.base[task] for task, y in self.y.items()} for arm in (0, 1)]
        before, after = (self._over_seeds(differences)[MACRO] for differences in over_base)
        return before, after

    def effects_of(self, y: dict[str, tuple[Floats, Floats]]) -> dict[str, Effect]:
        """`effects` of other numbers in place of ``y``, of the same shapes."""
        if self.paired:
            return self._over_seeds({task: after - before for task, (before, after) in y.items()})
        before, after = ({task: sides[arm] for task, sides in y.items()} for arm in (0, 1))
        return effects_unpaired(before, after, binary=self.outcome.binary, clusters=self.clusters)

    @cached_property
    def over_majority(self) -> Effect:
        """``after`` minus the majority class, macro, where accuracies are compared."""
        return self._over_seeds({task: y[1] - self.majority[task] for task, y in self.y.items()})[MACRO]

    def _over_seeds(self, differences: dict[str, Floats]) -> dict[str, Effect]:
        """The effects of differences on these questions; task -> shape ``(S, n)``."""
        return effects(differences, binary=self.outcome.binary, clusters=self.clusters)


def contrast_of(
    before: Arm,
    after: Arm,
    *,
    outcome: Outcome,
    base: Evaluation | None = None,
    own_seeds: bool = False,
) -> Contrast:
    """``after`` against ``before``, whose runs have answered the same questions.

    Args:
        before: the arm that the other is held against.
        after: the other.
        outcome: what is compared: of every task's answers, or of the runs themselves.
        base: the answers of the base of both arms to the same questions, if they are there.
        own_seeds: the seeds of the arms have nothing to do with each other, so runs are not paired by them.
    """
    # Two runs, or a run and an untrained model, are paired without seeds.
    paired = not (own_seeds and pairs_by_seed(before, after))
    ones = list(before.runs.values())
    others = list(after.runs.values())
    if paired:
        both = pairs(before, after)
        ones = [one for one, _ in both]
        others = [other for _, other in both]
    seeds = min(len(ones), len(others))
    if seeds < (2 if outcome.of_runs or not paired else 1):
        raise UsageError(
            f"{before.name} and {after.name}: too few seeds in common to compare {outcome.name}; train several, or"
            f" where seeds have nothing to do with each other, --allow {SEEDS} compares two runs or more of each"
        )
    majority = {}
    is_accuracy = outcome.binary and outcome.direction > 0
    if is_accuracy and all(answers.gold for answers in ones[0].tasks.values()):
        for task, answers in ones[0].tasks.items():
            majority[task] = np.equal(answers.gold, mode(answers.gold)).astype(float)
    tables = base.tasks if base is not None and before.trained and after.trained else {}
    y_before, y_after = values(ones, outcome), values(others, outcome)
    return Contrast(
        before=before.name,
        after=after.name,
        outcome=outcome,
        seeds=seeds,
        y={task: (y_before[task], y_after[task]) for task in y_before},
        majority=majority,
        clusters=cluster_codes(evaluations_of([*ones, *others])),
        base={task: np.array(answers.outcomes[outcome.name]) for task, answers in tables.items()},
        paired=paired,
        trained_here=all(run.made for run in (*ones, *others)),
    )
