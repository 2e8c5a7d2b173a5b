"""Arms against each other: one contrast named beforehand, everything else exploratory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from moslora.errors import UsageError
from moslora.study.mixed import refuse_mixed
from moslora.study.outcomes import EXPERIMENT, Outcome, read_index
from moslora.study.pairs import Arm, load_arms, pair, values
from moslora.study.statistics import MACRO, MICRO, Effect, Floats, effects


@dataclass(frozen=True)
class Contrast:
    """One arm against another, run by run and question by question.

    Attributes:
        before: the arm that the other is held against.
        after: the other.
        outcome: the number that is compared.
        seeds: pairs of runs, S; 1 for one run against one.
        y: task -> the outcome of both arms, shape ``(2, S, n)``.
        majority: task -> the accuracy of always giving the most frequent label, shape ``(n,)``.
        effects: task and average -> ``after`` minus ``before``.
    """

    before: str
    after: str
    outcome: Outcome
    seeds: int
    y: dict[str, Floats]
    majority: dict[str, Floats]
    effects: dict[str, Effect]

    @cached_property
    def means(self) -> dict[str, tuple[float, float]]:
        """Task and average -> the mean outcome of both arms."""
        means = {task: y.mean(axis=(1, 2)) for task, y in self.y.items()}
        sizes = [y.shape[2] for y in self.y.values()]
        means[MACRO] = np.mean(list(means.values()), axis=0)
        means[MICRO] = np.average([means[task] for task in self.y], axis=0, weights=sizes)
        return {name: (float(one), float(other)) for name, (one, other) in means.items()}

    @cached_property
    def over_majority(self) -> Effect:
        """``after`` minus the majority class, macro, where accuracies are compared."""
        return effects({task: y[1] - self.majority[task] for task, y in self.y.items()}, binary=True)[MACRO]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        outcome: the number that is compared.
        arms: in order.
        main: the contrast that was named, or the only one there is.
        exploratory: every other arm against the first, if there are more than two.
    """

    outcome: Outcome
    arms: tuple[Arm, ...]
    main: Contrast | None
    exploratory: tuple[Contrast, ...]


def compare(
    paths: Sequence[Path],
    *,
    contrast: tuple[str, str] | None = None,
    outcome: Outcome | None = None,
    evaluation: str | None = None,
    allowed: Sequence[str] = (),
) -> Comparison:
    """Compares what is at ``paths``.

    Args:
        paths: see `moslora.study.pairs.load_arms`.
        contrast: names of two arms, the second to be held against the first; the default is the experiment's, or the
            two arms that there are.
        outcome: the number that is compared; the default is the experiment's, or the accuracy.
        evaluation: name of the evaluation, for runs that have several.
        allowed: fields that may differ; see `moslora.study.mixed`.

    Raises:
        UsageError: nothing there, or nothing that can be compared.
    """
    arms = load_arms(paths, evaluation=evaluation)
    if len(paths) == 1 and (paths[0] / EXPERIMENT).is_file():
        index = read_index(paths[0])
        contrast, outcome = contrast or index.contrast, outcome or index.outcome
    return compare_arms(arms, contrast=contrast, outcome=outcome or "accuracy", allowed=allowed)


def compare_arms(
    arms: Sequence[Arm],
    *,
    contrast: tuple[str, str] | None = None,
    outcome: Outcome = "accuracy",
    allowed: Sequence[str] = (),
) -> Comparison:
    """`compare` for arms that are loaded."""
    refuse_mixed(arms, allowed=allowed)
    by_name = {arm.name: arm for arm in arms}
    if unknown := [name for name in contrast or () if name not in by_name]:
        raise UsageError(f"contrast: no arm {', '.join(unknown)}; must be two among {', '.join(by_name)}")
    if contrast is None and len(arms) == 2:
        contrast = (arms[0].name, arms[1].name)
    return Comparison(
        outcome,
        tuple(arms),
        main=_contrast(*(by_name[name] for name in contrast), outcome=outcome) if contrast else None,
        exploratory=tuple(_contrast(arms[0], arm, outcome=outcome) for arm in arms[1:]) if len(arms) > 2 else (),
    )


def _contrast(before: Arm, after: Arm, *, outcome: Outcome) -> Contrast:
    pairs = pair(before, after)
    ones, others = (values(runs, outcome) for runs in zip(*pairs, strict=True))
    gold = {task: answers.gold for task, answers in pairs[0][0].tasks.items()}
    frequent = {task: Counter(labels).most_common(1)[0][0] for task, labels in gold.items()}
    return Contrast(
        before=before.name,
        after=after.name,
        outcome=outcome,
        seeds=len(pairs),
        y={task: np.stack([ones[task], others[task]]) for task in ones},
        majority={task: np.equal(labels, frequent[task]).astype(float) for task, labels in gold.items()},
        effects=effects({task: others[task] - ones[task] for task in ones}, binary=outcome == "accuracy"),
    )
