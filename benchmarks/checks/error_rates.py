"""How often `moslora compare` finds a difference where there is none, and where there is one.

    python -m benchmarks.checks.error_rates                  # 7 minutes of one core; tables of docs/comparing.md
    python -m benchmarks.checks.error_rates --studies 200    # a quick look

Arms answer 8 tasks of 64 questions. An answer is right if

    difficulty[i] + effect + seed[arm, s] + taste[arm, i] + noise[arm, s, i] > 0

with all terms normal: `seed` is the luck of a training, `taste` what an arm knows of a question under every seed. Equal
arms differ in their draws alone, so that on other questions and under other seeds either may come out above.

In a family, eleven arms are compared with a common one. Its second outcome is the sum itself, of 100 texts: a number of
each text that needs no threshold, as nats per byte.
"""

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import DOCS
from benchmarks.tables import machine, markdown, write_between
from moslora.compare.statistics import LEVEL, MACRO, MICRO, Floats, effects, family, holm

PAGE = DOCS / "comparing.md"
TASKS = 8
QUESTIONS = 64
"""Of a task."""

TEXTS = 100
RESAMPLES = 1000


@dataclass(frozen=True)
class World:
    """An arm and others; standard deviations are in units of the noise.

    Attributes:
        title: in the table.
        seeds: runs of each arm.
        seed: standard deviation of a training's luck.
        taste: standard deviation of what an arm knows of a question.
        effects: of the other arms.
        margin: a difference of the sum that does not matter; ``None`` if it only says which answers are right.
    """

    title: str
    seeds: int
    seed: float = 0.0
    taste: float = 0.0
    effects: tuple[float, ...] = (0.0,)
    margin: float | None = None

    def differences(self, random: np.random.Generator) -> list[dict[str, Floats]]:
        """Of each other arm, task -> d, shape ``(S, n)``."""
        shape = (self.seeds, TEXTS if self.margin else TASKS * QUESTIONS)
        difficulty = random.normal(0.3, 1.5, shape[1])
        sums = []
        for effect in (0.0, *self.effects):
            luck = self.seed * random.standard_normal((self.seeds, 1))
            taste = self.taste * random.standard_normal(shape[1])
            noise = random.standard_normal(shape)
            sums.append(difficulty + effect + luck + taste + noise)
        first, *others = sums
        if self.margin:
            return [{"texts": other - first} for other in others]
        return [by_task((other > 0).astype(float) - (first > 0)) for other in others]


def by_task(differences: Floats) -> dict[str, Floats]:
    """Task -> its questions' share of the columns."""
    parts = np.split(differences, TASKS, axis=1)
    return {str(task): part for task, part in enumerate(parts)}


EQUAL = (
    World("one run each", seeds=1),
    World("6 seeds", seeds=6, seed=0.1),
    World("6 seeds, tastes", seeds=6, seed=0.1, taste=0.5),
    World("8 seeds, tastes", seeds=8, seed=0.1, taste=0.5),
)
PLANTED = (
    World("one run each", seeds=1, effects=(0.35,)),
    World("6 seeds", seeds=6, seed=0.1, effects=(0.3,)),
    World("6 seeds, tastes", seeds=6, seed=0.1, taste=0.5, effects=(0.3,)),
    World("8 seeds, tastes", seeds=8, seed=0.1, taste=0.5, effects=(0.3,)),
)

# The other arms of a family: their effects in margins, or in a unit that is as visible.
EQUAL_ARMS = (0.0,) * 11
MARGIN_APART = (1.0,) * 11
THREE_DIFFER = (2.0,) * 3 + (0.0,) * 8


def families(world: World, *kinds: tuple[float, ...], unit: float) -> list[World]:
    """``world`` with the effects of each kind, in units, under 4 and under 6 seeds."""
    found = []
    for kind in kinds:
        effects = tuple(unit * effect for effect in kind)
        found += [replace(world, effects=effects, seeds=seeds) for seeds in (4, 6)]
    return found


FAMILIES = [
    *families(World("nats, luck alone", 4, seed=5.0, margin=50.0), EQUAL_ARMS, MARGIN_APART, unit=50.0),
    *families(
        World("nats, tastes", 4, seed=0.1, taste=0.5, margin=0.5), EQUAL_ARMS, MARGIN_APART, THREE_DIFFER, unit=0.5
    ),
    *families(World("accuracy, tastes", 4, seed=0.1, taste=0.5), EQUAL_ARMS, THREE_DIFFER, unit=0.25),
]


@dataclass(frozen=True)
class Said:
    """What one comparison says."""

    shown: bool
    by_flips: bool
    by_interval: bool
    of_a_task: bool
    difference: float
    detectable: float


def study(world: World, random: np.random.Generator) -> Said:
    """Draws the answers of one study, and compares them."""
    (differences,) = world.differences(random)
    found = effects(differences, binary=True, resamples=RESAMPLES)
    macro = found.pop(MACRO)
    del found[MICRO]
    return Said(
        shown=macro.shown,
        by_flips=macro.p <= LEVEL,
        by_interval=not macro.interval[0] <= 0 <= macro.interval[1],
        of_a_task=min(holm([effect.p for effect in found.values()])) <= LEVEL,
        difference=macro.difference,
        detectable=macro.detectable or np.nan,
    )


@dataclass(frozen=True)
class SaidOfFamily:
    """What a comparison of several arms with one says: whether anything is false, and shares of what could be found.

    Attributes:
        false_difference: an equal arm is shown to differ.
        missed: an interval is without the true difference.
        false_equality: an arm that differs by the margin or more is shown to be equal.
        differing: of the arms that differ.
        equal: of those that do not.
    """

    false_difference: bool
    missed: bool
    false_equality: bool
    differing: float
    equal: float


def study_family(world: World, random: np.random.Generator) -> SaidOfFamily:
    """Draws the answers of arms, and compares them with the first.

    The questions are one task: of tasks of one size it is the same average, sooner.
    """
    drawn = [{"all": np.concatenate(list(d.values()), axis=1)} for d in world.differences(random)]
    found = [effects(d, binary=not world.margin, resamples=RESAMPLES // 4)[MACRO] for d in drawn]
    members = family(found, margin=world.margin or 0.005, count=len(found))
    true = np.array(world.effects)
    low, high = np.array([interval for interval, *_ in members]).T
    equal, different = np.array([p for _, *p in members]).T <= LEVEL
    return SaidOfFamily(
        false_difference=bool(different[true == 0].any()),
        missed=bool(((true < low) | (high < true)).any()),
        false_equality=bool(equal[true > 0].any()),
        differing=share_of(different[true > 0]),
        equal=share_of(equal[true == 0]),
    )


def share_of(found: Any) -> float:
    """The share that is true; not a number where there are none."""
    return float(found.mean()) if found.size else np.nan


def rate(count: int, studies: int) -> str:
    """A share of the studies in percent, with its 95 % interval (Clopper and Pearson)."""
    interval = stats.binomtest(count, studies).proportion_ci()
    return f"{100 * count / studies:.1f} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"


def family_row(world: World, studies: int) -> list[str]:
    """A line of the second table."""
    random = np.random.default_rng(
        [*world.title.encode(), world.seeds, *(int(100 * effect) for effect in world.effects)]
    )
    said = [study_family(world, random) for _ in range(studies)]

    def any_of(name: str, known: bool) -> str:
        if not known:
            return "–"
        return rate(sum(getattr(one, name) for one in said), studies)

    def share(name: str, known: bool) -> str:
        if not known:
            return "–"
        return f"{100 * np.mean([getattr(one, name) for one in said]):.0f}"

    some_equal = 0.0 in world.effects
    some_differ = any(world.effects)
    cells = [
        world.title,
        str(world.seeds),
        effects_in_words(world),
        f"{world.margin:g}" if world.margin else "–",
        any_of("false_difference", some_equal),
        any_of("missed", bool(world.margin) or not some_differ),
        any_of("false_equality", bool(world.margin) and some_differ),
        share("differing", some_differ),
        share("equal", bool(world.margin) and some_equal),
    ]
    print(" | ".join(cells), flush=True)
    return cells


def effects_in_words(world: World) -> str:
    counts = Counter(effect for effect in sorted(world.effects) if effect)
    if not counts:
        return "all equal"
    return ", ".join(f"{count} by {effect:g}" for effect, count in counts.items())


def row(world: World, studies: int) -> list[str]:
    """A line of the first table."""
    random = np.random.default_rng([*world.title.encode(), int(100 * world.effects[0])])
    said = [study(world, random) for _ in range(studies)]

    def of(name: str) -> str:
        return rate(sum(getattr(one, name) for one in said), studies)

    effect = 0.0
    if any(world.effects):
        effect = 100 * float(np.mean([one.difference for one in said]))
    detectable = 100 * np.mean([one.detectable for one in said])
    cells = [world.title, f"{effect:.1f}", f"{detectable:.1f}", of("shown"), of("by_flips"), of("by_interval")]
    cells.append(of("of_a_task") if world.seeds == 1 else "–")
    print(" | ".join(cells), flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000, help="of two equal arms; of the others a fifth")
    studies = parser.parse_args().studies
    rows = [row(world, studies) for world in EQUAL] + [row(world, max(1, studies // 5)) for world in PLANTED]
    titles = ["arms", "true difference", "detectable", "**shown**", "sign flips", "interval", "a task, by Holm"]
    counts = f"{studies:,} comparisons of equal arms in each row, {studies // 5:,} of the others. {machine()}."
    write_between(PAGE, "compare", f"{markdown([titles, *rows])}\n\n{counts}")
    several = max(1, studies // 10)
    titles = ["outcome", "seeds", "true differences", "margin", "any false difference", "any interval misses"]
    titles += ["any false equality", "differing arms found", "equal arms found"]
    rows = [family_row(world, several) for world in FAMILIES]
    write_between(PAGE, "families", f"{markdown([titles, *rows])}\n\n{several:,} families in each row. {machine()}.")


if __name__ == "__main__":
    main()
