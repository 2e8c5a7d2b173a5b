"""How often an experiment that is looked at while it goes on is wrong, and how many of its runs it saves.

    python -m benchmarks.checks.looks                        # tables of docs/experiments.md
    python -m benchmarks.checks.looks --studies 100 --print-only

Worlds are those of `benchmarks.checks.error_rates`: an arm and eleven others, like the committed runs of `article`. In
the first table all are equal, and in the second they differ as those runs do.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import DOCS
from benchmarks.checks.error_rates import rate
from benchmarks.checks.worlds import RUNS, World, estimated, with_tails
from benchmarks.tables import machine, markdown, publish
from moslora.compare.comparison import compare_paths
from moslora.compare.contrast import Contrast
from moslora.compare.index import PlannedLooks
from moslora.compare.law import Law
from moslora.compare.sequential import Look, SequentialLaw
from moslora.compare.statistics import LEVEL, MACRO, Floats, effects, holm
from moslora.report.figures.forgetting import FORGOTTEN

PAGE = DOCS / "experiments.md"

QUESTIONS = 256

REPLAYED = {4: ((4,), (2, 3, 4), (3, 4)), 6: ((6,), (3, 6), (2, 4, 6))}
"""Number of seeds -> the plans of looks with which committed runs are replayed."""

PLANS = (PlannedLooks(tuple(range(9)), (3, 6, 9)), PlannedLooks(tuple(range(4)), (2, 3, 4)))


def laws_at(differences: Sequence[Floats], looks: PlannedLooks, *, binary: bool) -> list[list[Law]]:
    """The law of each arm at each look, from its differences of shape ``(S, n)``."""
    found = []
    for of_arm in differences:
        found.append([effects({"all": of_arm[:count]}, binary=binary)[MACRO].law for count in looks.after])
    return found


def sequential(laws: Sequence[Law], looks: PlannedLooks) -> SequentialLaw:
    """After as many looks as there are laws."""
    shares = looks.shares[: len(laws)]
    return SequentialLaw.of(laws[-1], [Look(law, share) for law, share in zip(laws, shares, strict=True)])


@dataclass
class Errors:
    """Studies with a wrong conclusion: in one contrast, which every arm is in turn, and in any of eleven."""

    different: int = 0
    any_different: int = 0
    equal: int = 0
    any_equal: int = 0

    def add(self, study: int, laws: Sequence[SequentialLaw]) -> None:
        """Adds a study in which all arms are equal. Equality within a margin is wrong if the truth is the margin, and
        then as often as the one-sided test of 0 is wrong here."""
        different = [law.p() for law in laws]
        equal = [law.above(0.0) for law in laws]
        turn = study % len(laws)
        self.different += different[turn] <= LEVEL
        self.any_different += min(different) <= LEVEL / len(laws)
        self.equal += equal[turn] <= LEVEL
        self.any_equal += min(equal) <= LEVEL / len(laws)


def worlds() -> list[World]:
    """Those of `benchmarks.checks.error_rates` with fewer questions, which weigh the more: their means vary as much."""
    found = []
    for outcome in ("log_probability", FORGOTTEN):
        like_runs = estimated(outcome)
        weight = (QUESTIONS / like_runs.questions) ** 0.5
        thinned = replace(
            like_runs, questions=QUESTIONS, taste=weight * like_runs.taste, noise=weight * like_runs.noise
        )
        found += [thinned, *with_tails(thinned)]
    found.append(replace(estimated("accuracy"), questions=2 * QUESTIONS))
    return found


def errors_of(world: World, looks: PlannedLooks, studies: int) -> Errors:
    """In as many studies."""
    random = np.random.default_rng([*world.title.encode(), len(looks.seeds)])
    world = replace(world, seeds=len(looks.seeds))
    found = Errors()
    for study in range(studies):
        differences, _ = world.study(random)
        laws = laws_at(differences, looks, binary=world.binary)
        found.add(study, [sequential(of_arm, looks) for of_arm in laws])
    return found


def errors_table(studies: int) -> str:
    """A row per world, a column per plan of looks and kind of error."""
    titles = []
    for looks in PLANS:
        after = ", ".join(str(count) for count in looks.after)
        titles += [f"different, looks after {after}", f"equal, looks after {after}"]
    rows = [["world", *titles]]
    for world in worlds():
        cells = []
        for looks in PLANS:
            found = errors_of(world, looks, studies)
            cells.append(f"{rate(found.different, studies)} · {rate(found.any_different, studies)}")
            cells.append(f"{rate(found.equal, studies)} · {rate(found.any_equal, studies)}")
            print(world.title, looks.after, *cells[-2:], sep=" | ", flush=True)
        rows.append([world.title, *cells])
    return f"{markdown(rows)}\n\n{studies:,} studies each. {machine()}."


@dataclass
class Taken:
    """What one study took and found.

    Attributes:
        runs: of all arms and the one that they are held against.
        equal: contrasts that were found equal.
        different: contrasts that were found different.
    """

    runs: int
    equal: int
    different: int


def decided_by(laws: Sequence[Sequence[Law]], looks: PlannedLooks, *, margin: float) -> Taken:
    """A study whose arms leave once they are decided: equal within the margin, or different, by Holm's p."""
    open_arms = set(range(len(laws)))
    seeds = [looks.after[0]] * len(laws)
    seen: list[list[Law]] = [[] for _ in laws]
    equal: list[float] = []
    different: list[float] = []
    for number, count in enumerate(looks.after):
        for arm in open_arms:
            seen[arm].append(laws[arm][number])
            seeds[arm] = count
        so_far = [sequential(of_arm, looks) for of_arm in seen]
        equal = holm([law.beyond(margin) for law in so_far])
        different = holm([law.p() for law in so_far])
        open_arms = {arm for arm in open_arms if min(equal[arm], different[arm]) > LEVEL}
        if not open_arms:
            break
    return Taken(
        runs=sum(seeds) + max(seeds),
        equal=sum(p <= LEVEL for p in equal),
        different=sum(p <= LEVEL for p in different),
    )


def saved_rows(outcome: str, margin: float, studies: int) -> list[list[str]]:
    """A row per plan: all seeds at once, and with looks."""
    contrasts = compare_paths([RUNS], outcome=outcome).named
    true = [contrast.effects[MACRO].difference for contrast in contrasts]
    rows = []
    for after in ((9,), (3, 6, 9), (6,), (3, 4, 5, 6)):
        looks = PlannedLooks(tuple(range(after[-1])), after)
        world = replace(estimated(outcome), seeds=after[-1])
        random = np.random.default_rng(after[-1])  # the same studies with and without looks
        taken = []
        for _ in range(studies):
            differences, _ = world.study(random)
            moved = [of_arm + by for of_arm, by in zip(differences, true, strict=True)]
            taken.append(decided_by(laws_at(moved, looks, binary=False), looks, margin=margin))
        rows.append([outcome, in_words(after), *means_of(taken, full=len(true) + 1, seeds=after[-1])])
        print(" | ".join(rows[-1]), flush=True)
    return rows


def in_words(after: Sequence[int]) -> str:
    if len(after) == 1:
        return f"{after[0]} seeds, no looks"
    return f"looks after {', '.join(str(count) for count in after)}"


def means_of(taken: Sequence[Taken], *, full: int, seeds: int) -> list[str]:
    """Runs, as a number and a share of all, and what was found of the contrasts, on average."""
    runs = float(np.mean([one.runs for one in taken]))
    equal = np.mean([one.equal for one in taken])
    different = np.mean([one.different for one in taken])
    return [f"{runs:.0f} of {full * seeds}", f"{equal:.1f}", f"{different:.1f}"]


def replayed_rows(folder: Path, outcome: str) -> list[list[str]]:
    """A row per plan of looks at the committed runs: at the contrasts with one arm that have all seeds."""
    named = compare_paths([folder], outcome=outcome).named
    against = named[0].before
    count = max(contrast.seeds for contrast in named)
    contrasts = [contrast for contrast in named if contrast.before == against and contrast.seeds == count]
    margin = named[0].unit.margin / named[0].unit.factor
    rows = []
    for after in REPLAYED[count]:
        looks = PlannedLooks(tuple(range(count)), after)
        laws = [laws_of(contrast, after) for contrast in contrasts]
        taken = decided_by(laws, looks, margin=margin)
        runs = f"{taken.runs} of {count * (len(laws) + 1)}"
        found = [str(taken.equal), str(taken.different)]
        rows.append([f"{outcome}, committed runs", in_words(after), runs, *found])
    return rows


def laws_of(contrast: Contrast, after: Sequence[int]) -> list[Law]:
    """The law of a contrast at each look."""
    laws = []
    for count in after:
        first = {task: (y[1] - y[0])[:count] for task, y in contrast.y.items()}
        by_name = effects(first, binary=contrast.unit.binary, clusters=contrast.clusters)
        laws.append(by_name[MACRO].law)
    return laws


def replayed_table(folder: Path) -> str:
    """The committed runs of another experiment, by its own family."""
    rows = [["outcome", "plan", "runs that are scored", "equal", "different"]]
    for outcome in ("log_probability", FORGOTTEN):
        rows += replayed_rows(folder, outcome)
    return markdown(rows)


def saved_table(studies: int) -> str:
    rows = [["outcome", "plan", "runs that are scored", "equal, of 11", "different, of 11"]]
    for outcome, margin in (("log_probability", 0.01), (FORGOTTEN, 0.005)):
        rows += saved_rows(outcome, margin, studies)
        rows += replayed_rows(RUNS, outcome)
    return f"{markdown(rows)}\n\n{studies:,} studies each. {machine()}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2_000, help="of each world (%(default)s)")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="print what looks at this experiment save, alone")
    given = parser.parse_args()
    if given.replay:
        print(replayed_table(given.replay))
        return
    publish(errors_table(given.studies), PAGE, "looks-errors", print_only=given.print_only)
    publish(saved_table(given.studies // 10), PAGE, "looks-saved", print_only=given.print_only)


if __name__ == "__main__":
    main()
