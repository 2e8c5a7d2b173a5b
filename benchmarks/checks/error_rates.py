"""How often a comparison misses the truth, and how wide its intervals are, in worlds whose truth is known.

    python -m benchmarks.checks.error_rates                  # the table of docs/law.md
    python -m benchmarks.checks.error_rates --studies 100 --print-only

Arms are compared with the first: one of them, and all as a family (`benchmarks.checks.worlds`). Beside the distribution
of `moslora compare` stands an oracle: the normal one with the standard error over all studies.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from benchmarks import DOCS
from benchmarks.checks.worlds import SEEDS, World, worlds
from benchmarks.commands import command
from benchmarks.tables import machine, markdown, publish
from moslora.compare.distribution import Floats
from moslora.compare.statistics import LEVEL, Effect, effects
from moslora.errors import counted
from moslora.runs.scores import MACRO

MEASURED = 220
"""Studies whose intervals are measured."""


class Found(NamedTuple):
    """What the distribution says in the studies of a world.

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


def drawn(world: World, studies: int) -> list[Study]:
    random = np.random.default_rng([*world.title.encode(), world.seeds])
    clusters = None
    if world.clusters is not None and world.known:
        clusters = {"all": world.clusters}
    found: list[Study] = []
    for _ in range(studies):
        differences, true = world.study(random)
        of_all = [effects({"all": one}, binary=world.binary, clusters=clusters)[MACRO] for one in differences]
        found.append((of_all, true))
    return found


def found_in(world: World, studies: int) -> Found:
    """Errors and widths of the distribution in so many studies; widths as shares of a normal one's, for each arm."""
    of_world = drawn(world, studies)
    errors = [[arm.difference for arm in arms] - true for arms, true in of_world]
    oracle = np.sqrt((np.array(errors) ** 2).mean(axis=0))
    misses = []
    widths = []
    for number, (arms, true) in enumerate(of_world):
        p = [arm.distribution.p(truth) for arm, truth in zip(arms, true, strict=True)]
        turn = number % len(arms)
        levels = (LEVEL, LEVEL / len(arms))
        misses.append((100 * (p[turn] <= LEVEL), 100 * (min(p) <= levels[1])))
        if number < MEASURED:
            of_oracle = [-2 * ndtri(level / 2) * oracle[turn] for level in levels]
            widths.append([np.ptp(arms[turn].distribution.interval(level)) for level in levels] / np.array(of_oracle))
    return Found(*np.mean(misses, axis=0).tolist(), *np.mean(widths, axis=0).tolist())


def main(*, studies: int = 2_000, print_only: bool = False) -> None:
    rows = [["outcome, world", *(counted(seeds, "seed") for seeds in SEEDS)]]
    for world in worlds():
        cells = []
        for seeds in SEEDS:
            said = found_in(replace(world, seeds=seeds), studies)
            print(f"{world.title}, {counted(seeds, 'seed')}: {said}", flush=True)
            cells.append(f"{said.misses:.1f} · {said.joint_misses:.1f}")
        rows.append([world.title, *cells])
    error = 100 * np.sqrt(0.05 * 0.95 / studies)
    note = f"{studies:,} studies each, so that 5 % has a standard error of {error:.1f}. {machine()}."
    publish(f"{markdown(rows)}\n\n{note}", DOCS / "law.md", "misses", print_only=print_only)


if __name__ == "__main__":
    command(main)
