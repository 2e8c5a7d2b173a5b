"""How often a comparison misses the truth, and how wide its intervals are, in worlds whose truth is known.

    python -m benchmarks.checks.error_rates                  # tables of docs/law.md
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

PAGE = DOCS / "law.md"

MEASURED = 220
"""Studies whose intervals are measured."""

RIVALS_AT = (4, 6)
"""Numbers of seeds under which the other laws are looked at."""

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
            alone = width(laws[turn], LEVEL)
            joint = width(laws[turn], LEVEL / len(arms))
            self.widths.append((turn, alone, joint))

    def against(self, oracle: Floats) -> Found:
        """With widths as shares of those of normal laws with these standard errors, one for each arm."""
        quantile = -ndtri(LEVEL / 2)
        joint_quantile = -ndtri(LEVEL / len(oracle) / 2)
        shares = [alone / (2 * quantile * oracle[arm]) for arm, alone, _ in self.widths]
        joint_shares = [joint / (2 * joint_quantile * oracle[arm]) for arm, _, joint in self.widths]
        return Found(self.misses, self.joint_misses, float(np.mean(shares)), float(np.mean(joint_shares)))


def width(law: Law, level: float) -> float:
    low, high = law.interval(level)
    return high - low


def found_by_laws(world: World, studies: int) -> dict[str, Found]:
    """Law -> what it says in as many studies; of the others under `RIVALS_AT` seeds."""
    random = np.random.default_rng([*world.title.encode(), world.seeds])
    tallies = {OWN: Tally(LAWS[OWN])}
    if world.seeds in RIVALS_AT:
        tallies = {name: Tally(law) for name, law in LAWS.items()}
    clusters = None
    if world.clusters is not None and world.known:
        clusters = {"all": world.clusters}
    errors = []
    for study in range(studies):
        differences, true = world.study(random)
        arms = []
        for of_arm in differences:
            arms.append(effects({"all": of_arm}, binary=world.binary, clusters=clusters)[MACRO])
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
            found = found_by_laws(replace(world, seeds=seeds), studies)
            results[world.title, seeds] = found
            for law, said in found.items():
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
    """For each law the least and most misses over the worlds, and the same of widths."""
    known = [title for title in titles(results) if "not named" not in title]
    columns = []
    for seeds in RIVALS_AT:
        columns += [f"{seeds} seeds: one misses", "any of eleven", "width of one", "of eleven"]
    rows = [["law", *columns]]
    for law in LAWS:
        cells = []
        for seeds in RIVALS_AT:
            found = [results[title, seeds][law] for title in known]
            cells.append(least_to_most([100 * said.misses / studies for said in found], digits=1))
            cells.append(least_to_most([100 * said.joint_misses / studies for said in found], digits=1))
            cells.append(least_to_most([said.width for said in found], digits=2))
            cells.append(least_to_most([said.joint_width for said in found], digits=2))
        rows.append([law, *cells])
    note = "Least to most over the worlds: percent of the studies, and widths as shares of the oracle's."
    return f"{markdown(rows)}\n\n{note}"


def least_to_most(values: Sequence[float], *, digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


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
