"""Comparison of several arms: contrasts named beforehand, and exploratory ones.

The tables are in `moslora.compare.display`, the sentences in `moslora.compare.conclusion`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moslora.compare.arms import SEEDS, Arm, all_runs, load_arms, pairs, unpaired_runs
from moslora.compare.comparable import note_what_differs, refuse_mixed, refuse_other_prompts
from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.contrast import Contrast, contrast_of
from moslora.compare.gains import shared_base
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.margin import Margin, read_margin
from moslora.console import note
from moslora.errors import UsageError, counted, some
from moslora.runs.evaluation import questions_in_common
from moslora.runs.outcomes import DEFAULTS, OUTCOMES, Outcome, measure
from moslora.tasks import COMMONSENSE, GROUP, split_names, unknown_names

OF_TEXTS = "nats_per_byte"
"""Name of the outcome of texts."""


@dataclass(frozen=True)
class Comparison:
    """Contrasts of arms, on the questions that all of their runs answered.

    Attributes:
        arms: all arms that were named, also those in no contrast.
        named: contrasts named beforehand that have runs, or the only contrast of two arms.
        exploratory: contrasts of every other arm with the first, if at most one contrast was named.
        count: number of contrasts named beforehand, with runs or without.
        left_out: messages on the questions and runs that were left out.
        own_margin: largest negligible difference, if one was named; ``None`` for the outcome's.
        least_shared: smallest share, over runs and tasks, of a run's answers to questions that all runs answered.
    """

    arms: tuple[Arm, ...]
    named: tuple[Contrast, ...]
    exploratory: tuple[Contrast, ...]
    count: int
    left_out: tuple[str, ...] = ()
    own_margin: Margin | None = None
    least_shared: float = 1.0

    @property
    def main(self) -> Contrast | None:
        """Named contrast, if there is exactly one; else ``None``."""
        return self.named[0] if self.named and self.count == 1 else None

    @property
    def outcome(self) -> Outcome:
        """Outcome that is compared."""
        return (self.named or self.exploratory)[0].outcome

    @property
    def margin(self) -> Margin:
        """Largest negligible difference."""
        return self.own_margin or Margin(self.outcome.margin)

    def within(self, margin: Margin | None) -> "Comparison":
        """Return the comparison with this margin, or with its own one if ``margin`` is ``None``.

        Raises:
            UsageError: the margin is a share of the gain, and the base has no answers.
        """
        margin = margin or self.own_margin
        if margin and margin.of_gain and not all(contrast.base for contrast in self.named):
            raise UsageError(
                f"--margin {margin}: a share of the gain over the base, which has no {self.outcome.name} for these"
                " questions; evaluate it (moslora eval RUN --base), or give a number"
            )
        return replace(self, own_margin=margin)

    def refuse_few(self, *, questions: int, share: float) -> None:
        """Refuse a comparison on too few questions.

        Args:
            questions: minimum number of questions.
            share: minimum share of each run's answered questions that all runs answered.

        Raises:
            UsageError: there are fewer.
        """
        compared = min(contrast.questions() for contrast in (*self.named, *self.exploratory))
        if compared < questions:
            raise UsageError(f"compared on {counted(compared, 'question')}, and --min-questions requires {questions:,}")
        if self.least_shared < share:
            raise UsageError(
                f"{some(self.left_out)}; only {100 * self.least_shared:.1f} % of one side's questions have answers on"
                f" all sides, and {100 * share:g} % are required; complete them, or set --min-share"
            )

    def with_direction(self, direction: int) -> "Comparison":
        """Return the comparison, given the direction of a log's score: 1 if more is better, -1 if less is.

        Raises:
            UsageError: the outcome's direction is already known.
        """
        if self.outcome.direction:
            raise UsageError(f"--better: moslora knows which direction of {self.outcome.name} is better; leave it out")
        outcome = replace(self.outcome, direction=direction)
        named, exploratory = (
            tuple(replace(contrast, outcome=outcome) for contrast in contrasts)
            for contrasts in (self.named, self.exploratory)
        )
        return replace(self, named=named, exploratory=exploratory)


def compare_paths(
    paths: Sequence[Path],
    *,
    contrasts: Sequence[tuple[str, str]] = (),
    outcome: str | None = None,
    evaluation: str | None = None,
    tasks: str | None = None,
    allowed: Sequence[str] = (),
    cluster: str | None = None,
) -> Comparison:
    """Compare the arms at ``paths``, by default by the contrasts and outcome of their experiment.

    Args:
        paths: as in `load_arms`.
        contrasts: as in `compare_arms`.
        outcome: as in `compare_arms`.
        evaluation: as in `load_arms`.
        tasks: as in `compare_arms`.
        allowed: as in `compare_arms`.
        cluster: as in `load_arms`.
    """
    arms = load_arms(paths, evaluation=evaluation, cluster=cluster)
    index = read_index(paths[0]) if len(paths) == 1 else None
    if index is not None:
        outcome = outcome or index.outcome
        if not contrasts:
            return compare_planned(arms, index, outcome=outcome, tasks=tasks, allowed=allowed)
    return compare_arms(arms, contrasts=contrasts, outcome=outcome, tasks=tasks, allowed=allowed)


def compare_planned(
    arms: Sequence[Arm], index: ExperimentIndex, *, outcome: str, tasks: str | None = None, allowed: Sequence[str] = ()
) -> Comparison:
    """Compare arms by their experiment's contrasts. Contrasts that have no runs yet count towards `count`, too.

    Args:
        arms: arms of the experiment.
        index: index of the experiment.
        outcome: as in `compare_arms`.
        tasks: as in `compare_arms`.
        allowed: as in `compare_arms`.
    """
    planned = index.named
    by_name = {arm.name: arm for arm in arms}
    with_arms = [pair for pair in planned if by_name.keys() >= {*pair}]
    with_runs = [pair for pair in with_arms if SEEDS in allowed or pairs(*(by_name[name] for name in pair))]
    comparison = compare_arms(arms, contrasts=with_runs or planned, outcome=outcome, tasks=tasks, allowed=allowed)
    margin = read_margin(index.margin) if index.margin else None
    # A number is a margin of the planned outcome alone; a share is one of every outcome of questions.
    if margin and outcome != index.outcome and (OUTCOMES[outcome].of_runs or not margin.of_gain):
        margin = None
    exploratory = comparison.exploratory if len(planned) == 1 else ()
    return replace(comparison, count=len(planned), own_margin=margin, exploratory=exploratory)


def compare_arms(
    arms: Sequence[Arm],
    *,
    contrasts: Sequence[tuple[str, str]] = (),
    outcome: str | None = None,
    tasks: str | None = None,
    allowed: Sequence[str] = (),
) -> Comparison:
    """Compare arms on the questions that all of their runs answered.

    Args:
        arms: two or more arms.
        contrasts: pairs of names, the second arm against the first; by default the only two arms.
        outcome: name of the outcome that is compared; ``None`` for the first of `DEFAULTS` that all runs have.
        tasks: names of the compared tasks, separated by commas; ``None`` for all.
        allowed: fields that may differ (`refuse_mixed`). With `SEEDS` among them, runs are not paired by seed.

    Raises:
        UsageError: the arms cannot be compared.
    """
    own_seeds = SEEDS in allowed
    arms = _restricted(arms, tasks, outcome)
    refuse_mixed(arms, allowed=allowed)
    runs = all_runs(arms)
    shared, left_out = questions_in_common(evaluations_of(runs))
    if not (shared or _is_of_runs(outcome)):
        fix = "evaluate them on the same questions (--tasks, --limit, evaluation.skip), and write their ids alike"
        raise UsageError(f"{some((run.path for run in runs), separator=' and ')}: no question in common; {fix}")
    shares = [
        len(shared.get(task, ())) / len(answers.ids)
        for run in runs
        for task, answers in run.tasks.items()
        if answers.ids
    ]
    arms = [arm.each(lambda run: run.only(shared)) for arm in arms]
    runs = all_runs(arms)
    note_what_differs(arms)
    refuse_other_prompts(runs, allowed=allowed)
    measured = _outcome(runs, outcome)
    by_name = {arm.name: arm for arm in arms}
    unknown = set().union(*contrasts) - by_name.keys()
    if unknown:
        raise UsageError(f"contrast: no arm {', '.join(sorted(unknown))}; must be two among {', '.join(by_name)}")
    trained = [arm for arm in arms if arm.trained]
    base = None
    if len(trained) > 1:  # a single trained arm is compared with its base itself
        base = shared_base(evaluations_of(all_runs(trained)))

    def contrasts_of(names: Sequence[tuple[str, str]]) -> tuple[Contrast, ...]:
        arm_pairs = [(by_name[before], by_name[after]) for before, after in names]
        return tuple(contrast_of(*pair, outcome=measured, base=base, own_seeds=own_seeds) for pair in arm_pairs)

    against_first = [(arms[0].name, arm.name) for arm in arms[1:]]
    named = list(dict.fromkeys(contrasts))
    exploratory = []
    if not named and len(against_first) == 1:
        named = against_first
    elif len(named) <= 1 and len(against_first) > 1:
        with_pairs = [pair for pair in against_first if own_seeds or pairs(*(by_name[name] for name in pair))]
        exploratory = with_pairs or against_first
    lines = [left_out] if left_out else []
    for before, after in [*named, *exploratory] if not own_seeds else ():
        unpaired = unpaired_runs(by_name[before], by_name[after])
        if unpaired:
            lines.append(f"{before} and {after}: left out without a run of the same seed: {some(unpaired, most=8)}")
    return Comparison(
        arms=tuple(arms),
        named=contrasts_of(named),
        exploratory=contrasts_of(exploratory),
        count=len(named),
        left_out=tuple(lines),
        least_shared=min(shares, default=1.0),
    )


def _restricted(arms: Sequence[Arm], tasks: str | None, outcome: str | None) -> list[Arm]:
    """Return the arms with the answers to compare.

    These are the answers to texts if the outcome is one of texts, or if there are no others. Otherwise they are those
    to questions. For an outcome of runs there are no answers.

    Args:
        arms: arms with all their answers.
        tasks: names of tasks, separated by commas; ``None`` for all.
        outcome: name of the outcome, if one was given.
    """
    tables = {task: answers for run in all_runs(arms) for task, answers in run.tasks.items()}
    group = [task for task in COMMONSENSE if task in tables]
    names = split_names(tasks or "", group=group or [GROUP]) or list(tables)
    faults = unknown_names(names, list(tables))
    if faults:
        raise UsageError("\n".join(faults))
    if _is_of_runs(outcome):
        return [arm.each(lambda run: run.only({})) for arm in arms]
    texts = [name for name in names if OF_TEXTS in tables[name].outcomes]
    compared = [name for name in names if name not in texts]
    if not compared or (texts and outcome == OF_TEXTS):
        compared = texts
    elif texts:
        note(f"texts are left out: {some(texts)}; --outcome {OF_TEXTS} compares them")
    return [arm.each(lambda run: run.restricted_to(compared)) for arm in arms]


def _is_of_runs(outcome: str | None) -> bool:
    """Whether the outcome is a number of a run, not of its questions."""
    return outcome is not None and outcome in OUTCOMES and OUTCOMES[outcome].of_runs


def _outcome(runs: Sequence[ComparedRun], chosen: str | None) -> Outcome:
    """Return the ``chosen`` outcome, else the only one that all runs have, else the first of `DEFAULTS` that they have.

    Raises:
        UsageError: not all runs have it for all tasks.
    """
    if chosen and _is_of_runs(chosen):
        return OUTCOMES[chosen]
    tables = [answers for run in runs for answers in run.tasks.values()]
    shared = [name for name in tables[0].outcomes if all(table.outcomes.get(name) for table in tables)]
    usual = shared if len(shared) == 1 else [name for name in DEFAULTS if name in shared]
    name = chosen or next(iter(usual), "NAME")
    if name not in shared:
        fix = f"must be one of {', '.join(shared)}" if shared else "none is known"
        raise UsageError(f"--outcome {name}: {fix} for all of these tasks; choose others with --tasks")
    return measure(name, {value for table in tables for value in table.outcomes[name]})
