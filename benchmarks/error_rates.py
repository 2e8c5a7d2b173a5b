"""How often `moslora compare` finds a difference where there is none, and where there is one.

    python benchmarks/error_rates.py                  # 7 minutes of one core; writes the tables of docs/evaluation.md
    python benchmarks/error_rates.py --studies 200    # a quick look

Arms answer 8 tasks of 64 questions. An answer is right if

    difficulty[i] + effect + seed[arm, s] + taste[arm, i] + noise[arm, s, i] > 0

with all terms normal: `seed` is the luck of a training, `taste` what an arm knows of a question under every seed. Equal
arms differ in their draws alone, so that on other questions and under other seeds either may come out above.

In a family, eleven arms are compared with a common one. Its second outcome is the sum itself, of 100 texts: a number of
each text that needs no threshold, as nats per byte.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from moslora.compare.statistics import LEVEL, MACRO, MICRO, Floats, effects, family, holm
from written import machine, markdown, write_between

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
TASKS, QUESTIONS, TEXTS, RESAMPLES = 8, 64, 100, 1000


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
        first, *others = [
            difficulty
            + effect
            + self.seed * random.standard_normal((self.seeds, 1))
            + self.taste * random.standard_normal(shape[1])
            + random.standard_normal(shape)
            for effect in (0.0, *self.effects)
        ]
        if self.margin:
            return [{"texts": other - first} for other in others]
        right = [(other > 0).astype(float) - (first > 0) for other in others]
        return [{str(task): part for task, part in enumerate(np.split(d, TASKS, axis=1))} for d in right]


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

EQUAL_ARMS, MARGIN_APART, THREE_DIFFER = (0.0,) * 11, (1.0,) * 11, (2.0,) * 3 + (0.0,) * 8
"""The other arms of a family: their effects in margins."""

FAMILIES = [
    World(title, seeds, seed, taste, tuple(unit * effect for effect in effects), margin)
    for title, seed, taste, unit, margin, kinds in (
        ("nats, luck alone", 5.0, 0.0, 50.0, 50.0, [EQUAL_ARMS, MARGIN_APART]),
        ("nats, tastes", 0.1, 0.5, 0.5, 0.5, [EQUAL_ARMS, MARGIN_APART, THREE_DIFFER]),
        ("accuracy, tastes", 0.1, 0.5, 0.25, None, [EQUAL_ARMS, THREE_DIFFER]),
    )
    for effects in kinds
    for seeds in (4, 6)
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
        differing=float(different[true > 0].mean()) if true.any() else np.nan,
        equal=float(equal[true == 0].mean()) if not true.all() else np.nan,
    )


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
    sizes = {effect: world.effects.count(effect) for effect in sorted({*world.effects})}

    def any_of(name: str, known: bool) -> str:
        return rate(sum(getattr(one, name) for one in said), studies) if known else "–"

    def share(name: str, known: bool) -> str:
        return f"{100 * np.mean([getattr(one, name) for one in said]):.0f}" if known else "–"

    some_equal, some_differ = 0.0 in sizes, any(sizes)
    cells = [
        world.title,
        str(world.seeds),
        "all equal"
        if not some_differ
        else ", ".join(f"{count} by {effect:g}" for effect, count in sizes.items() if effect),
        f"{world.margin:g}" if world.margin else "–",
        any_of("false_difference", some_equal),
        any_of("missed", bool(world.margin) or not some_differ),
        any_of("false_equality", bool(world.margin) and some_differ),
        share("differing", some_differ),
        share("equal", bool(world.margin) and some_equal),
    ]
    print(" | ".join(cells), flush=True)
    return cells


def row(world: World, studies: int) -> list[str]:
    """A line of the first table."""
    random = np.random.default_rng([*world.title.encode(), int(100 * world.effects[0])])
    said = [study(world, random) for _ in range(studies)]

    def of(name: str) -> str:
        return rate(sum(getattr(one, name) for one in said), studies)

    effect = 100 * np.mean([one.difference for one in said]) if any(world.effects) else 0.0
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
