"""How often `moslora compare` finds a difference where there is none, and where there is one.

    python benchmarks/error_rates.py                  # 4 minutes of one core; writes the table of docs/evaluation.md
    python benchmarks/error_rates.py --studies 200    # a quick look

Arms answer 8 tasks of 64 questions. An answer is right if

    difficulty[i] + effect + seed[arm, s] + taste[arm, i] + noise[arm, s, i] > 0

with all terms normal: `seed` is the luck of a training, `taste` what an arm knows of a question under every seed. Equal
arms differ in their draws alone, so that on other questions and under other seeds either may come out above.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from moslora.compare.statistics import LEVEL, MACRO, MICRO, Floats, effects, holm
from written import machine, markdown, write_between

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
TASKS, QUESTIONS, RESAMPLES = 8, 64, 1000


@dataclass(frozen=True)
class World:
    """Two arms; standard deviations are in units of the noise.

    Attributes:
        title: in the table.
        seeds: runs of each arm.
        seed: standard deviation of a training's luck.
        taste: standard deviation of what an arm knows of a question.
        effect: of the second arm.
    """

    title: str
    seeds: int
    seed: float = 0.0
    taste: float = 0.0
    effect: float = 0.0

    def differences(self, random: np.random.Generator) -> dict[str, Floats]:
        """Task -> d, shape ``(S, n)``."""
        shape = (self.seeds, TASKS * QUESTIONS)
        difficulty = random.normal(0.3, 1.5, shape[1])
        arms = [
            difficulty
            + effect
            + self.seed * random.standard_normal((self.seeds, 1))
            + self.taste * random.standard_normal(shape[1])
            + random.standard_normal(shape)
            > 0
            for effect in (0.0, self.effect)
        ]
        d = arms[1].astype(float) - arms[0]
        return {str(task): part for task, part in enumerate(np.split(d, TASKS, axis=1))}


EQUAL = (
    World("one run each", seeds=1),
    World("6 seeds", seeds=6, seed=0.1),
    World("6 seeds, tastes", seeds=6, seed=0.1, taste=0.5),
    World("8 seeds, tastes", seeds=8, seed=0.1, taste=0.5),
)
PLANTED = (
    World("one run each", seeds=1, effect=0.35),
    World("6 seeds", seeds=6, seed=0.1, effect=0.3),
    World("6 seeds, tastes", seeds=6, seed=0.1, taste=0.5, effect=0.3),
    World("8 seeds, tastes", seeds=8, seed=0.1, taste=0.5, effect=0.3),
)


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
    found = effects(world.differences(random), binary=True, resamples=RESAMPLES)
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


def row(world: World, studies: int) -> list[str]:
    """A line of the table: shares of the studies in percent, with 95 % intervals (Clopper and Pearson)."""
    random = np.random.default_rng([*world.title.encode(), int(100 * world.effect)])
    said = [study(world, random) for _ in range(studies)]

    def rate(name: str) -> str:
        count = sum(getattr(one, name) for one in said)
        interval = stats.binomtest(count, studies).proportion_ci()
        return f"{100 * count / studies:.1f} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"

    effect = 100 * np.mean([one.difference for one in said]) if world.effect else 0.0
    detectable = 100 * np.mean([one.detectable for one in said])
    cells = [world.title, f"{effect:.1f}", f"{detectable:.1f}", rate("shown"), rate("by_flips"), rate("by_interval")]
    cells.append(rate("of_a_task") if world.seeds == 1 else "–")
    print(" | ".join(cells), flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000, help="of equal arms; of the others a fifth")
    studies = parser.parse_args().studies
    rows = [row(world, studies) for world in EQUAL] + [row(world, max(1, studies // 5)) for world in PLANTED]
    titles = ["arms", "true difference", "detectable", "**shown**", "sign flips", "interval", "a task, by Holm"]
    counts = f"{studies:,} comparisons of equal arms in each row, {studies // 5:,} of the others. {machine()}."
    write_between(PAGE, "compare", f"{markdown([titles, *rows])}\n\n{counts}")


if __name__ == "__main__":
    main()
