"""The planned tests of the experiment `forgetting`, from its tables.

    python -m benchmarks.research.forgetting                                        # docs/experiments/forgetting
    python -m benchmarks.research.forgetting docs/experiments/forgetting-second     # the second model
    python -m benchmarks.research.forgetting --without-seed 203                     # how much hangs on one seed
    python -m benchmarks.research.forgetting --without-set arc_easy                 # or on one of the eight sets

A challenger is better than half the rate if it keeps the gain of `lora` and forgets less than `lora-half`. Each part is
a one-sided test by `moslora.compare.distribution`, and all are needed (an intersection-union
test: Berger 1982, doi 10.1080/00401706.1982.10487790):

    challenger − share · lora − (1 − share) · base > 0      in log p, and in summed log p: the gain counts as estimated
    lora-half − challenger > 0                              in nats per byte of the passages

The p of a challenger is the largest of its parts. Holm's adjustment is over all challengers that the experiment names,
also those without runs, whose p is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import DOCS
from benchmarks.commands import command
from moslora.cli.table import print_table
from moslora.compare.arms import Arm, load_arms, pairs
from moslora.compare.comparison import compare_arms
from moslora.compare.contrast import Contrast
from moslora.compare.index import read_index
from moslora.compare.statistics import LEVEL, holm
from moslora.errors import UsageError
from moslora.runs.scores import MACRO
from moslora.tasks import COMMONSENSE, GROUP

LORA = "lora"
HALF = "lora-half"
TWICE = "lora-twice"
CONTROLS = (LORA, HALF, TWICE)
KEPT = 0.85
"""Share of LoRA's gain that a challenger must keep."""

GAINED = ("log_probability", "log_probability_summed")
FORGOTTEN = "nats_per_byte"
TEXTS = "passages"


@dataclass(frozen=True)
class Part:
    """One of a challenger's tests: what was found, and its one-sided p."""

    found: float
    p: float


def keeps(contrast: Contrast, share: float = KEPT) -> Part:
    """Whether the second arm gains more than a ``share`` of what the first one does; finds the share that it gains.

    Raises:
        UsageError: the base's answers are not there.
    """
    gains = contrast.gains
    if gains is None:
        raise UsageError(f"{contrast.before}: the answers of the base are not there; moslora eval RUN --base")
    sides = {}
    for task, (before, after) in contrast.y.items():
        sides[task] = (share * before + (1 - share) * contrast.base[task], after)
    of_lora, of_challenger = gains
    return Part(of_challenger.difference / of_lora.difference, contrast.effects_of(sides)[MACRO].distribution.below(0))


def loses_less(contrast: Contrast) -> Part:
    """Whether the second arm loses fewer nats per byte than the first; finds how many fewer."""
    sides = {task: (after, before) for task, (before, after) in contrast.y.items()}
    distribution = contrast.effects_of(sides)[MACRO].distribution
    return Part(distribution.difference, distribution.below(0))


def contrast_of(arms: Sequence[Arm], before: str, after: str, outcome: str) -> Contrast | None:
    """The second arm against the first in the eight sets, or in the passages; ``None`` without runs of one seed."""
    both = {arm.name: arm for arm in arms if arm.name in (before, after)}
    if len(both) < 2 or not pairs(both[before], both[after]):
        return None
    tasks = TEXTS if outcome == FORGOTTEN else GROUP
    return compare_arms([both[before], both[after]], outcome=outcome, tasks=tasks).named[0]


def parts_of(arms: Sequence[Arm], challenger: str) -> list[Part] | None:
    """The tests of a challenger; ``None`` where one has no runs."""
    gained = [contrast_of(arms, LORA, challenger, outcome) for outcome in GAINED]
    forgotten = contrast_of(arms, HALF, challenger, FORGOTTEN)
    if forgotten is None or None in gained:
        return None
    return [*(keeps(contrast) for contrast in gained if contrast), loses_less(forgotten)]


def table(arms: Sequence[Arm], challengers: Sequence[str]) -> list[list[str]]:
    """A row for each challenger: what each part found with its p, the largest p, and Holm's."""
    found = {challenger: parts_of(arms, challenger) for challenger in challengers}
    largest = {challenger: max(part.p for part in parts) if parts else 1.0 for challenger, parts in found.items()}
    adjusted = dict(zip(challengers, holm([*largest.values()]), strict=True))
    rows = [["challenger", "seeds", "log p kept", "summed log p kept", "nats per byte fewer than half", "p", "Holm"]]
    names = {arm.name: arm for arm in arms}
    for challenger, parts in found.items():
        if parts is None:
            rows.append([challenger, "0", "–", "–", "–", "–", "–"])
            continue
        cells = [f"{100 * part.found:.0f} % (p {part.p:.3g})" for part in parts[:-1]]
        cells.append(f"{parts[-1].found:+.4f} (p {parts[-1].p:.3g})")
        verdict = "better" if adjusted[challenger] <= LEVEL else "not shown"
        rows.append(
            [
                challenger,
                str(len(names[challenger].runs)),
                *cells,
                f"{largest[challenger]:.3g}",
                f"{adjusted[challenger]:.3g}, {verdict}",
            ]
        )
    return rows


def control(arms: Sequence[Arm]) -> str:
    """Whether twice the rate is told apart: it forgets more."""
    contrast = contrast_of(arms, TWICE, LORA, FORGOTTEN)
    if contrast is None:
        return f"{TWICE}, the positive control: no runs"
    part = loses_less(contrast)
    verdict = "told apart" if part.p <= LEVEL else "NOT told apart, so the study says little"
    return f"{TWICE}, the positive control, loses {part.found:+.4f} nats per byte more (p {part.p:.3g}): {verdict}"


def challengers_of(folder: Path) -> list[str]:
    """The challengers that the experiment in this folder names.

    Raises:
        UsageError: the folder holds no experiment.
    """
    index = read_index(folder)
    if index is None:
        raise UsageError(f"{folder}: no experiment")
    return list(dict.fromkeys(after for _, after in index.named if after not in CONTROLS))


def main(folder: Path = DOCS / "experiments" / "forgetting", *, without_seed: int = -1, without_set: str = "") -> None:
    challengers = challengers_of(folder)
    arms = []
    for arm in load_arms([folder]):
        runs = {seed: run for seed, run in arm.runs.items() if seed != without_seed}
        arms.append(Arm(arm.name, runs).each(lambda run: run.restricted_to(run.tasks.keys() - {without_set})))
    print_table(table(arms, challengers))
    if any(arm.name == TWICE for arm in arms):
        print(control(arms))


if __name__ == "__main__":
    command(main, without_set=COMMONSENSE)
