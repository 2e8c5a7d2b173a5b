"""The looks at an experiment while it goes on, as ``experiment.json`` records them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from moslora.compare.index import ExperimentIndex, PlannedLooks
from moslora.compare.runs import ComparedRun

Pair = tuple[ComparedRun, ComparedRun]


@dataclass(frozen=True)
class LookedAt:
    """A look at a contrast.

    Attributes:
        pairs: number of pairs of runs that were there, in the order of the seeds; fewer than seeds if some diverged.
        share: of the level.
        seeds: after so many of the experiment.
    """

    pairs: int
    share: float
    seeds: int


@dataclass(frozen=True)
class Looks:
    """When an experiment is looked at, and how far its runs are.

    Attributes:
        planned: seeds and looks.
        done: arm -> the seeds of its runs that are done, whether they diverged or not.
    """

    planned: PlannedLooks
    done: Mapping[str, Collection[int]]

    def reached(self, *arms: str) -> list[int]:
        """The looks, by their number of seeds, for which these arms have all runs."""
        found = []
        for count in self.planned.after:
            due = set(self.planned.seeds[:count])
            if not all(due.issubset(self.done.get(arm, ())) for arm in arms):
                break
            found.append(count)
        return found

    def at(self, before: str, after: str, seeds: Collection[int | None]) -> tuple[LookedAt, ...]:
        """The looks at a contrast of two arms that both have reached.

        Args:
            before: the name of the arm that the other is held against.
            after: of the other.
            seeds: those of the pairs that have answers.
        """
        found = []
        for count, share in zip(self.reached(before, after), self.planned.shares, strict=False):
            pairs = sum(seed in seeds for seed in self.planned.seeds[:count])
            if pairs > 1:  # fewer where others have diverged; one pair says nothing of other seeds
                found.append(LookedAt(pairs, share, count))
        return tuple(found)

    def in_order(self, pairs: Sequence[Pair], looks: Sequence[LookedAt]) -> list[Pair]:
        """The pairs of the last of these looks in the order of the seeds; all if there is none yet."""
        by_seed = {before.seed: (before, after) for before, after in pairs}
        ordered = [by_seed[seed] for seed in self.planned.seeds if seed in by_seed]
        if not looks:
            return ordered
        return ordered[: looks[-1].pairs]


def looks_of(index: ExperimentIndex) -> Looks | None:
    """The looks that an experiment's index records; ``None`` if it is only looked at in the end."""
    if index.looks is None:
        return None
    done: dict[str, set[int]] = {}
    for run in index.runs:
        done.setdefault(run.arm, set()).add(run.seed)
    return Looks(index.looks, done)
