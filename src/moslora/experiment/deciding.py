"""The looks at an experiment while it goes on: which contrasts are decided, and which arms take more seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moslora.compare.arms import load_arms
from moslora.compare.comparison import compare_loaded
from moslora.compare.decisions import Names, decided, decisions_in_words
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.looks import Looks, looks_of
from moslora.console import unsaid
from moslora.experiment.keys import ExperimentFile


@dataclass(frozen=True)
class Standings:
    """Where the contrasts of an experiment stand.

    Attributes:
        named: all of them.
        looks: at the experiment.
        decided: contrast -> the number of seeds after which it was decided; of those that are.
    """

    named: Sequence[Names]
    looks: Looks
    decided: Mapping[Names, int]

    def seeds_wanted(self, arm: str) -> int:
        """The number of seeds of an arm: up to the next look at a contrast of its own that is open, or as many as it
        was decided with. An arm of no contrast goes as far as any arm."""
        own = [contrast for contrast in self.named if arm in contrast]
        return max(self._seeds_of(contrast) for contrast in own or self.named)

    def _seeds_of(self, contrast: Names) -> int:
        if contrast in self.decided:
            return self.decided[contrast]
        after = self.looks.planned.after
        reached = self.looks.reached(*contrast)
        next_look = min(len(reached), len(after) - 1)
        return after[next_look]

    def lines(self) -> Iterator[str]:
        """Which contrasts are decided, and after how many seeds."""
        return decisions_in_words(self.named, self.decided, seeds=len(self.looks.planned.seeds))


def standings_in(out: Path, named: Sequence[Names]) -> Standings | None:
    """Those of the experiment in the folder ``out``, with these contrasts; ``None`` if it is looked at only in the end,
    or nothing has run yet."""
    index = read_index(out)
    if index is None:
        return None
    looks = looks_of(index)
    if looks is None:
        return None
    if not any(_can_be_judged(contrast, looks, index) for contrast in named):
        return Standings(named, looks, {})
    with unsaid():
        found = compare_loaded(load_arms([out]), [out]).within(None)  # refuses a share of a gain that is not known
    return Standings(named, looks, decided(found))


def _can_be_judged(contrast: Names, looks: Looks, index: ExperimentIndex) -> bool:
    """Whether both arms have come to a look, and have answers under a seed."""
    answered: dict[str, set[int]] = {arm: set() for arm in contrast}
    for run in index.runs:
        if run.arm in contrast and not run.diverged:
            answered[run.arm].add(run.seed)
    before, after = contrast
    return bool(looks.reached(before, after)) and not answered[before].isdisjoint(answered[after])


def was_looked_at(index: ExperimentIndex) -> bool:
    """Whether a contrast has come to its first look."""
    looks = looks_of(index)
    return looks is not None and any(looks.reached(*contrast) for contrast in index.named)


def plan_before(index: ExperimentIndex, file: ExperimentFile) -> list[str]:
    """What the plan was, of each part that the file has changed since. Contrasts may be added: they only make the p of
    the others larger."""
    found = []
    looks = index.looks
    if looks is not None and looks != file.planned_looks:
        seeds = ", ".join(str(seed) for seed in looks.seeds)
        after = ", ".join(str(count) for count in looks.after)
        found.append(f"seeds: [{seeds}] with looks after {after} of them")
    if index.outcome != file.outcome:
        found.append(f"outcome: {index.outcome}")
    if index.margin is None and file.margin is not None:
        found.append("no margin")
    elif index.margin != file.margin_text:
        found.append(f"margin: {index.margin}")
    dropped = [f"[{before}, {after}]" for before, after in index.named if (before, after) not in file.named]
    if dropped:
        found.append(f"contrasts with {', '.join(dropped)} among them")
    return found
