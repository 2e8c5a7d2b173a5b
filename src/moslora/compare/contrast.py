"""One arm against another: the outcomes of both question by question, and the difference in every task and average.

How a difference is estimated is in `moslora.compare.statistics`.
"""

from dataclasses import dataclass, field
from functools import cached_property
from statistics import mode

import numpy as np

from moslora.compare.arms import SEEDS, Arm, cluster_codes, outcome_values, pairs, pairs_by_seed
from moslora.compare.compared_run import evaluations_of
from moslora.compare.distribution import Floats
from moslora.compare.statistics import Codes, Effect, effects, effects_unpaired
from moslora.errors import UsageError
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import Outcome
from moslora.runs.scores import MACRO, MICRO


@dataclass(frozen=True)
class Contrast:
    """Outcomes of two arms, ``after`` against ``before``, run by run and question by question.

    Attributes:
        before: name of the first arm.
        after: name of the second arm.
        outcome: outcome that is compared.
        seeds: number of pairs of runs, S; for arms that are not paired, the smaller number of runs.
        y: task -> outcomes of both arms, shapes ``(S, n)``; if not paired, ``(S_before, n)`` and ``(S_after, n)``. n is
            1 for an outcome of runs.
        majority: task -> 1 where the most frequent label is right, shape ``(n,)``; empty if labels are unknown, or no
            accuracy is compared.
        clusters: task -> index of each question's cluster, shape ``(n,)``; without tasks that have no clusters.
        base: task -> outcome of the base of both arms, shape ``(n,)``; empty without its answers to these questions.
        paired: whether each run is compared with the other arm's of the same seed; if not, seeds are independent.
        trained_here: whether both arms are runs of moslora; false if one is a base or a log.
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
        """Effect, ``after`` minus ``before``, of each task and of the average, by name."""
        return self.effects_of(self.y)

    def questions(self, task: str | None = None) -> int:
        """Return the number of questions of a task, or of all tasks for an average."""
        if task in self.y:
            return self.y[task][0].shape[1]
        return sum(before.shape[1] for before, _ in self.y.values())

    @property
    def independent_questions(self) -> dict[str, int]:
        """Task -> number of clusters, where a question without a cluster counts as one."""
        counts = {task: self.questions(task) for task in self.y}
        return counts | {task: len(np.unique(codes)) for task, codes in self.clusters.items()}

    @cached_property
    def means(self) -> dict[str, tuple[float, float]]:
        """Mean outcome of both arms, of each task and of the average, by name."""
        means = np.array([[before.mean(), after.mean()] for before, after in self.y.values()])  # shape (tasks, 2)
        micro = np.average(means, axis=0, weights=[self.questions(task) for task in self.y])
        rows = [*means, means.mean(axis=0), micro]
        return {name: (float(row[0]), float(row[1])) for name, row in zip([*self.y, MACRO, MICRO], rows, strict=True)}

    @cached_property
    def gains(self) -> tuple[Effect, Effect] | None:
        """Gains of both arms over their base, macro average; ``None`` without its answers."""
        if not self.base:
            return None
        over_base = [{task: y[arm] - self.base[task] for task, y in self.y.items()} for arm in (0, 1)]
        before, after = (self._over_seeds(differences)[MACRO] for differences in over_base)
        return before, after

    def effects_of(self, y: dict[str, tuple[Floats, Floats]]) -> dict[str, Effect]:
        """Return the effects of other outcomes ``y`` of the same questions, in the shapes of the contrast's own `y`."""
        if self.paired:
            return self._over_seeds({task: after - before for task, (before, after) in y.items()})
        before, after = ({task: sides[arm] for task, sides in y.items()} for arm in (0, 1))
        return effects_unpaired(before, after, binary=self.outcome.binary, clusters=self.clusters)

    @cached_property
    def over_majority(self) -> Effect:
        """Accuracy of ``after`` minus that of the majority class, macro average."""
        return self._over_seeds({task: y[1] - self.majority[task] for task, y in self.y.items()})[MACRO]

    def _over_seeds(self, differences: dict[str, Floats]) -> dict[str, Effect]:
        """Return task -> effect over seeds, from the differences of each task's questions, shape ``(S, n)``."""
        return effects(differences, binary=self.outcome.binary, clusters=self.clusters)


def contrast_of(
    before: Arm,
    after: Arm,
    *,
    outcome: Outcome,
    base: Evaluation | None = None,
    own_seeds: bool = False,
) -> Contrast:
    """Return the contrast of ``after`` against ``before``, whose runs have answered the same questions.

    Args:
        before: arm to compare with.
        after: arm that is compared.
        outcome: outcome that is compared.
        base: answers of the base of both arms to the same questions; ``None`` if they are unknown.
        own_seeds: whether the arms' seeds are independent, so that runs are not paired by seed.

    Raises:
        UsageError: too few seeds, or an outcome that is not there.
    """
    # Two runs, or a run and an untrained model, are paired without seeds.
    paired = not (own_seeds and pairs_by_seed(before, after))
    runs_before, runs_after = list(before.runs.values()), list(after.runs.values())
    if paired:
        run_pairs = pairs(before, after)
        runs_before = [run for run, _ in run_pairs]
        runs_after = [run for _, run in run_pairs]
    seeds = min(len(runs_before), len(runs_after))
    if seeds < (2 if outcome.of_runs or not paired else 1):
        raise UsageError(
            f"{before.name} and {after.name}: too few seeds in common to compare {outcome.name}; train both with"
            f" more seeds in common, or compare two or more runs of each arm unpaired, with --allow {SEEDS}"
        )
    majority = {}
    is_accuracy = outcome.binary and outcome.direction > 0
    if is_accuracy and all(answers.gold for answers in runs_before[0].tasks.values()):
        for task, answers in runs_before[0].tasks.items():
            majority[task] = np.equal(answers.gold, mode(answers.gold)).astype(float)
    tables = base.tasks if base is not None and before.trained and after.trained else {}
    y_before, y_after = outcome_values(runs_before, outcome), outcome_values(runs_after, outcome)
    return Contrast(
        before=before.name,
        after=after.name,
        outcome=outcome,
        seeds=seeds,
        y={task: (y_before[task], y_after[task]) for task in y_before},
        majority=majority,
        clusters=cluster_codes(evaluations_of([*runs_before, *runs_after])),
        base={task: np.array(answers.outcomes[outcome.name]) for task, answers in tables.items()},
        paired=paired,
        trained_here=all(run.training_facts for run in (*runs_before, *runs_after)),
    )
