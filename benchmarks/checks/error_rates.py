"""How often a comparison misses the truth, and how wide its intervals are, in worlds whose truth is known.

    python -m benchmarks.checks.error_rates                  # tables of docs/law.md
    python -m benchmarks.checks.error_rates --studies 100 --print-only

Arms are compared with the first: one of them, and all as a family (`benchmarks.checks.worlds`). The law of `moslora
compare` stands beside two others, and an oracle: the normal law with the standard error over all studies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from benchmarks import DOCS
from benchmarks.checks.worlds import SEEDS, World, worlds
from benchmarks.commands import command
from benchmarks.tables import machine, markdown, publish
from moslora.compare.law import Law, Part
from moslora.compare.statistics import LEVEL, MACRO, Effect, Floats, effects
from moslora.errors import counted

MEASURED = 220
"""Studies whose intervals are measured."""

RIVALS_AT = (4, 6)
"""Numbers of seeds under which the other laws are looked at."""

NONE = Part(0.0, 0.0)


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
    "seeds and questions (`moslora compare`)": lambda effect: effect.law,
    "Behrens and Fisher's, of V_s and V_q − V_i": behrens_fisher,
    "Satterthwaite's degrees": satterthwaite,
    "Student's t, S − 1 degrees": student,
}
OWN = next(iter(LAWS))


class Found(NamedTuple):
    """What a law says in the studies of a world.

    Attributes:
        misses: percent of the studies whose one interval, of every arm in turn, is without the truth.
        joint_misses: percent of the studies of which any of the family's intervals is.
        width: of an interval, as a share of the oracle's, on average.
        joint_width: of an interval of the family.
    """

    misses: float
    joint_misses: float
    width: float
    joint_width: float


Study = tuple[Sequence[Effect], Floats]
"""The arms, and the truth."""


def found_by(law: Callable[[Effect], Law], studies: Sequence[Study], oracle: Floats) -> Found:
    """With widths as shares of those of normal laws with the standard errors ``oracle``, one for each arm."""
    misses = []
    widths = []
    for number, (arms, true) in enumerate(studies):
        laws = [law(arm) for arm in arms]
        p = [law.p(truth) for law, truth in zip(laws, true, strict=True)]
        turn = number % len(arms)
        levels = (LEVEL, LEVEL / len(arms))
        misses.append((100 * (p[turn] <= LEVEL), 100 * (min(p) <= levels[1])))
        if number < MEASURED:
            of_oracle = [-2 * ndtri(level / 2) * oracle[turn] for level in levels]
            widths.append([np.ptp(laws[turn].interval(level)) for level in levels] / np.array(of_oracle))
    return Found(*np.mean(misses, axis=0).tolist(), *np.mean(widths, axis=0).tolist())


def found_by_laws(world: World, studies: int) -> dict[str, Found]:
    """Law -> what it says in as many studies; of the others under `RIVALS_AT` seeds."""
    random = np.random.default_rng([*world.title.encode(), world.seeds])
    clusters = None
    if world.clusters is not None and world.known:
        clusters = {"all": world.clusters}
    drawn: list[Study] = []
    for _ in range(studies):
        differences, true = world.study(random)
        of_all = [effects({"all": one}, binary=world.binary, clusters=clusters)[MACRO] for one in differences]
        drawn.append((of_all, true))
    errors = [[arm.difference for arm in arms] - true for arms, true in drawn]
    oracle = np.sqrt((np.array(errors) ** 2).mean(axis=0))
    laws = LAWS if world.seeds in RIVALS_AT else {OWN: LAWS[OWN]}
    return {name: found_by(law, drawn, oracle) for name, law in laws.items()}


Results = dict[str, dict[int, Mapping[str, Found]]]
"""Title of a world -> number of seeds -> law -> what it says."""


def measure(studies: int) -> Results:
    """In every world, under every number of seeds."""
    results: Results = {}
    for world in worlds():
        results[world.title] = {}
        for seeds in SEEDS:
            found = found_by_laws(replace(world, seeds=seeds), studies)
            results[world.title][seeds] = found
            for law, said in found.items():
                print(f"{world.title}, {counted(seeds, 'seed')}, {law}: {said}", flush=True)
    return results


def misses_table(results: Results, studies: int) -> str:
    """A row per world, a column per number of seeds: misses of the own law, of one contrast and of eleven."""
    rows = [["outcome, world", *(counted(seeds, "seed") for seeds in SEEDS)]]
    for title, by_seeds in results.items():
        own = [found[OWN] for found in by_seeds.values()]
        rows.append([title, *(f"{said.misses:.1f} · {said.joint_misses:.1f}" for said in own)])
    error = 100 * np.sqrt(0.05 * 0.95 / studies)
    return (
        f"{markdown(rows)}\n\n{studies:,} studies each, so that 5 % has a standard error of {error:.1f}. {machine()}."
    )


def laws_table(results: Results) -> str:
    """For each law the least and most misses over the worlds, and the same of widths."""
    known = [by_seeds for title, by_seeds in results.items() if "not named" not in title]
    rows = [["law"]]
    for seeds in RIVALS_AT:
        rows[0] += [f"{seeds} seeds: one misses", "any of eleven", "width of one", "of eleven"]
    for law in LAWS:
        cells = []
        for seeds in RIVALS_AT:
            columns = zip(*(by_seeds[seeds][law] for by_seeds in known), strict=True)
            for values, digits in zip(columns, (1, 1, 2, 2), strict=True):
                cells.append(f"{min(values):.{digits}f} to {max(values):.{digits}f}")
        rows.append([law, *cells])
    note = "Least to most over the worlds: percent of the studies, and widths as shares of the oracle's."
    return f"{markdown(rows)}\n\n{note}"


def main(*, studies: int = 2_000, print_only: bool = False) -> None:
    results = measure(studies)
    page = DOCS / "law.md"
    publish(misses_table(results, studies), page, "misses", print_only=print_only)
    publish(laws_table(results), page, "laws", print_only=print_only)


if __name__ == "__main__":
    command(main)
