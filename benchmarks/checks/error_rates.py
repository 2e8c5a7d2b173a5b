"""How often a comparison misses the truth, and how wide its intervals are, in worlds whose truth is known.

    python -m benchmarks.checks.error_rates                  # tables of docs/comparing.md
    python -m benchmarks.checks.error_rates --studies 100 --print-only

Arms are compared with the first: one of them, and all as a family (`benchmarks.checks.worlds`). The law of `moslora
compare` stands beside two others, and an oracle: the normal law with the standard error over all studies.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from benchmarks import DOCS
from benchmarks.checks.worlds import SEEDS, World, worlds
from benchmarks.tables import machine, markdown, publish
from moslora.compare.law import Law, Part
from moslora.compare.statistics import LEVEL, MACRO, Effect, Floats, effects
from moslora.errors import counted

PAGE = DOCS / "comparing.md"

MEASURED = 220
"""Studies whose intervals are measured."""

NONE = Part(0.0, 0.0)


def of_seeds_and_questions(effect: Effect) -> Law:
    """The law of `moslora compare`."""
    return effect.law


def student(effect: Effect) -> Law:
    """Student's t of S − 1 degrees for the error as a whole."""
    return Law(effect.difference, Part(effect.law.standard_error**2, effect.seeds - 1), NONE)


def satterthwaite(effect: Effect) -> Law:
    """Student's t of Satterthwaite's degrees, (S − 1) (V / V_s)²."""
    variance = effect.law.standard_error**2
    share = max(effect.law.seeds.variance / variance, 1e-3)  # 0 where all seeds have the same right answers
    return Law(effect.difference, Part(variance, (effect.seeds - 1) / share**2), NONE)


def behrens_fisher(effect: Effect) -> Law:
    """√V_s · T_s + √(V_q − V_i) · T_q."""
    law = effect.law
    rest = max(0.0, law.questions.variance - law.interaction)
    return Law(effect.difference, law.seeds, Part(rest, law.questions.degrees))


LAWS: dict[str, Callable[[Effect], Law]] = {
    "seeds and questions (`moslora compare`)": of_seeds_and_questions,
    "Behrens and Fisher's, of V_s and V_q − V_i": behrens_fisher,
    "Satterthwaite's degrees": satterthwaite,
    "Student's t, S − 1 degrees": student,
}
OWN = next(iter(LAWS))


@dataclass(frozen=True)
class Found:
    """What a law says in the studies of a world.

    Attributes:
        misses: studies whose one interval is without the truth.
        joint_misses: studies of which any of the family's intervals is.
        width: of an interval, as a share of the oracle's, on average.
        joint_width: of an interval of the family.
    """

    misses: int
    joint_misses: int
    width: float
    joint_width: float


class Tally:
    """What one law says, study by study."""

    def __init__(self, law: Callable[[Effect], Law]) -> None:
        self.law = law
        self.misses = 0
        self.joint_misses = 0
        self.widths: list[tuple[int, float, float]] = []
        """Of an arm, its interval, and that in the family."""

    def add(self, study: int, arms: Sequence[Effect], true: Floats) -> None:
        """As one contrast every arm is taken in turn."""
        laws = [self.law(arm) for arm in arms]
        p = [law.p(truth) for law, truth in zip(laws, true, strict=True)]
        turn = study % len(arms)
        self.misses += p[turn] <= LEVEL
        self.joint_misses += min(p) <= LEVEL / len(arms)
        if study < MEASURED:
            self.widths.append((turn, width(laws[turn], LEVEL), width(laws[turn], LEVEL / len(arms))))

    def against(self, oracle: Floats) -> Found:
        """With widths as shares of those of normal laws with these standard errors, one for each arm."""
        shares = [alone / (2 * -ndtri(LEVEL / 2) * oracle[arm]) for arm, alone, _ in self.widths]
        quantile = -ndtri(LEVEL / len(oracle) / 2)
        joint_shares = [joint / (2 * quantile * oracle[arm]) for arm, _, joint in self.widths]
        return Found(self.misses, self.joint_misses, float(np.mean(shares)), float(np.mean(joint_shares)))


def width(law: Law, level: float) -> float:
    low, high = law.interval(level)
    return high - low


def found_by_laws(world: World, studies: int) -> dict[str, Found]:
    """Law -> what it says in as many studies; with one seed of the first alone, as the others need several."""
    random = np.random.default_rng([*world.title.encode(), world.seeds])
    tallies = {name: Tally(law) for name, law in LAWS.items() if world.seeds > 1 or name == OWN}
    clusters = None
    if world.clusters is not None and world.known:
        clusters = {"all": world.clusters}
    errors = []
    for study in range(studies):
        differences, true = world.study(random)
        arms = [effects({"all": d}, binary=world.binary, clusters=clusters)[MACRO] for d in differences]
        errors.append([arm.difference for arm in arms] - true)
        for tally in tallies.values():
            tally.add(study, arms, true)
    oracle = np.sqrt((np.array(errors) ** 2).mean(axis=0))
    return {name: tally.against(oracle) for name, tally in tallies.items()}


Results = dict[tuple[str, int], dict[str, Found]]
"""Title of a world and number of seeds -> law -> what it says."""


def measure(studies: int) -> Results:
    """In every world, under every number of seeds."""
    results: Results = {}
    for world in worlds():
        for seeds in SEEDS:
            results[world.title, seeds] = found_by_laws(replace(world, seeds=seeds), studies)
            for law, said in results[world.title, seeds].items():
                misses = f"{rate(said.misses, studies)} and {rate(said.joint_misses, studies)} % miss"
                print(f"{world.title}, {counted(seeds, 'seed')}, {law}: {misses};", end=" ")
                print(f"widths {said.width:.2f} and {said.joint_width:.2f}", flush=True)
    return results


def rate(count: int, studies: int) -> str:
    """A share of the studies in percent."""
    return f"{100 * count / studies:.1f}"


def misses_table(results: Results, studies: int) -> str:
    """A row per world, a column per number of seeds: misses of the own law, of one contrast and of eleven."""
    rows = [["outcome, world", *columns_of_seeds()]]
    for title in titles(results):
        cells = []
        for seeds in SEEDS:
            said = results[title, seeds][OWN]
            cells.append(f"{rate(said.misses, studies)} · {rate(said.joint_misses, studies)}")
        rows.append([title, *cells])
    error = 100 * np.sqrt(0.05 * 0.95 / studies)
    return (
        f"{markdown(rows)}\n\n{studies:,} studies each, so that 5 % has a standard error of {error:.1f}. {machine()}."
    )


def laws_table(results: Results, studies: int) -> str:
    """For each law and number of seeds the least and most misses over the worlds, and the same of widths."""
    several = [seeds for seeds in SEEDS if seeds > 1]
    known = [title for title in titles(results) if "not named" not in title]
    rows = [["law", "", *columns_of_seeds()[1:]]]
    for law in LAWS:
        of_law = {seeds: [results[title, seeds][law] for title in known] for seeds in several}
        for name, field in (("one contrast", "misses"), ("any of eleven", "joint_misses")):
            cells = []
            for found in of_law.values():
                shares = [getattr(said, field) / studies for said in found]
                cells.append(f"{100 * min(shares):.1f} to {100 * max(shares):.1f}")
            rows.append([law, f"{name}: % that miss", *cells])
        for name, field in (("one contrast", "width"), ("any of eleven", "joint_width")):
            cells = []
            for found in of_law.values():
                widths = [getattr(said, field) for said in found]
                cells.append(f"{min(widths):.2f} to {max(widths):.2f}")
            rows.append([law, f"{name}: width / the oracle's", *cells])
    return f"{markdown(rows)}\n\nLeast and most over the worlds."


def titles(results: Results) -> list[str]:
    """Of the worlds, in their order."""
    return list(dict.fromkeys(title for title, _ in results))


def columns_of_seeds() -> list[str]:
    return [counted(seeds, "seed") for seeds in SEEDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2_000, help="of each world (%(default)s)")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    given = parser.parse_args()
    results = measure(given.studies)
    publish(misses_table(results, given.studies), PAGE, "misses", print_only=given.print_only)
    publish(laws_table(results, given.studies), PAGE, "laws", print_only=given.print_only)


if __name__ == "__main__":
    main()
